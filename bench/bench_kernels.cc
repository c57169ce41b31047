// SPDX-License-Identifier: Apache-2.0
// Every kernel of every instruction set against what the machine can do at most with the same
// bytes. Names are KERNEL/ISA/WHERE: L1 is one thread on data in the first-level cache, memory is
// all threads on data larger than the last-level cache. The figure is bytes of source a second.
// Each pass of a kernel is followed at once by a pass of what it is compared with, because figures
// of different moments do not compare on a shared machine; the counters are medians of those
// ratios: x_limit (the same traffic without arithmetic), x_memcpy (of the source), x_divide (the
// division alone) and x_plain (a plain loop, left to the compiler).
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "limits.h"
extern "C" {
#include "kernels.h"
}

namespace
{

constexpr size_t COLUMNS = 4096;            // of a matrix with a scale per column
constexpr size_t L1_ELEMENTS = 4096;        // 16 KiB of float32 and what is made of it
constexpr size_t MEMORY_ELEMENTS = 1 << 24; // a thread; 64 MiB of float32

// Memory that stays for the whole run: fresh pages cost more than any kernel.
struct Data {
    float *x, *y;
    int8_t *q;
    float scales[COLUMNS], max[COLUMNS], min[COLUMNS];

    static void *pages(size_t n)
    {
        const size_t huge = size_t{2} << 20;
        n = (n + huge - 1) / huge * huge;
        void *p = std::aligned_alloc(huge, n);
        if (!p)
            std::abort();
        madvise(p, n, MADV_HUGEPAGE);
        std::memset(p, 0, n);
        return p;
    }

    Data()
        : x(static_cast<float *>(pages(MEMORY_ELEMENTS * 4))),
          y(static_cast<float *>(pages(MEMORY_ELEMENTS * 5))),
          q(static_cast<int8_t *>(pages(MEMORY_ELEMENTS)))
    {
        for (size_t i = 0; i < MEMORY_ELEMENTS; i++) // as 16-bit floats these are finite too
            x[i] = static_cast<float>(
                       static_cast<int>(static_cast<uint32_t>(i) * 2654435761u >> 20) - 2048) *
                   1e-3f;
        for (size_t i = 0; i < COLUMNS; i++)
            scales[i] = 0.0123f + 1e-6f * static_cast<float>(i % 97);
    }
    Data(const Data &) = delete;
};

Data &data_of(int thread)
{
    static std::vector<Data *> all(256);
    Data *&d = all[static_cast<size_t>(thread)];
    if (!d)
        d = new Data;
    return *d;
}

using Run = void (*)(const qf_kernels *k, Data &d, size_t n, bool stream);

// How a kernel works on memory: bytes for each 128 elements, which names its limit.
struct Kernel {
    const char *name;
    size_t read, write;
    Run run;
};

qf_quantized ints(Data &d, bool stream)
{
    return {d.q, nullptr, stream};
}

const Kernel kernels[] = {
    {"quantize_f32", 512, 128,
     [](const qf_kernels *k, Data &d, size_t n, bool s) {
         k->quantize_f32(d.x, n, 0.0123f, -128, 127, ints(d, s));
     }},
    {"quantize_f16", 256, 128,
     [](const qf_kernels *k, Data &d, size_t n, bool s) {
         k->quantize_f16(d.x, n, 0.0123f, -128, 127, ints(d, s));
     }},
    {"quantize_bf16", 256, 128,
     [](const qf_kernels *k, Data &d, size_t n, bool s) {
         k->quantize_bf16(d.x, n, 0.0123f, -128, 127, ints(d, s));
     }},
    {"quantize_columns_f32", 512, 128,
     [](const qf_kernels *k, Data &d, size_t n, bool s) {
         k->quantize_columns_f32(d.x, n / COLUMNS, COLUMNS, d.scales, -128, 127, ints(d, s));
     }},
    {"quantize_to_both", 512, 640,
     [](const qf_kernels *k, Data &d, size_t n, bool s) {
         k->quantize_f32(d.x, n, 0.0123f, -128, 127, {d.q, d.y, s});
     }},
    {"quantize_to_float", 512, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool s) {
         k->quantize_f32(d.x, n, 0.0123f, -128, 127, {nullptr, d.y, s});
     }},
    {"quantize_nibbles", 512, 64,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         qf_quantize_nibbles(k, d.x, QF_F32, n, 0.0123f, reinterpret_cast<uint8_t *>(d.q));
     }},
    {"quantize_transposed", 512, 128,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         size_t rows = n / (n > COLUMNS ? COLUMNS : 64), cols = n / rows;
         for (size_t r = 0; r < rows; r += 256) { // bands, as the executor cuts them
             size_t m = std::min<size_t>(rows - r, 256);
             qf_quantize_transposed(k, d.x + r, QF_F32, rows, m, cols, d.scales, cols, -128, 127,
                                    {d.q + r * cols, nullptr, false});
         }
     }},
    {"absmax", 512, 0,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->absmax_f32(d.x, n, d.max); }},
    {"absmax_columns", 512, 0,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         for (size_t i = 0; i < n; i += COLUMNS)
             k->absmax_columns_f32(d.x + i, COLUMNS, d.max);
     }},
    {"minmax", 512, 0,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->minmax(d.x, n, d.min, d.max); }},
    {"minmax_columns", 512, 0,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         for (size_t i = 0; i < n; i += COLUMNS)
             k->minmax_columns(d.x + i, COLUMNS, d.min, d.max);
     }},
    {"widen", 128, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->widen(d.q, n, d.y); }},
    {"dequantize", 128, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->dequantize(d.q, n, 0.0123f, d.y); }},
    {"dequantize_columns", 128, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         for (size_t i = 0; i < n; i += COLUMNS)
             k->dequantize_columns(d.q + i, COLUMNS, d.scales, d.y + i);
     }},
    {"load_f16", 256, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->load_f16(d.x, n, d.y); }},
    {"load_bf16", 256, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->load_bf16(d.x, n, d.y); }},
    {"pack_pairs", 128, 64,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         k->pack_pairs(d.q, n / 2, reinterpret_cast<uint8_t *>(d.y));
     }},
    {"pack_rows", 128, 64,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         k->pack_rows(d.q, d.q + n / 2, n / 2, reinterpret_cast<uint8_t *>(d.y));
     }},
    {"transpose", 128, 128,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         size_t cols = n > COLUMNS ? COLUMNS : 64, rows = n / cols;
         k->transpose(d.q, cols, rows, cols, reinterpret_cast<int8_t *>(d.y), rows);
     }},
    {"bias_f32", 512, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         for (size_t i = 0; i < n; i += COLUMNS)
             k->bias_f32(d.x + i, COLUMNS, d.scales, COLUMNS, reinterpret_cast<int32_t *>(d.y) + i);
     }},
    {"dequant_scale", 512, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->dequant_scale(d.x, n, 0.3f, d.y); }},
    {"dequant_pack", 256, 512,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         k->dequant_pack(d.x, n / 2, 0xffffe000u, reinterpret_cast<uint64_t *>(d.y));
     }},
};

const char *where(size_t n)
{
    return n == L1_ELEMENTS ? "L1" : "memory";
}

// All threads of a benchmark together, so that each pass is timed as a whole.
void meet(int threads)
{
    static std::atomic<int> waiting{0}, round{0};
    const int mine = round.load();
    if (waiting.fetch_add(1) + 1 == threads) {
        waiting.store(0);
        round.fetch_add(1);
        return;
    }
    while (round.load() == mine)
        std::this_thread::yield();
}

double seconds()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

using Pass = std::function<void(Data &d, size_t n)>;
struct Rival {
    const char *counter;
    Pass pass;
};

// Registers `pass` on both sizes; `bytes` of source for each 128 elements are what is counted.
void add(const std::string &name, size_t bytes, Pass pass, const std::vector<Rival> &in_l1,
         const std::vector<Rival> &in_memory)
{
    for (size_t n : {L1_ELEMENTS, MEMORY_ELEMENTS}) {
        const std::vector<Rival> &rivals = n == L1_ELEMENTS ? in_l1 : in_memory;
        const int repeat = n == L1_ELEMENTS ? 256 : 1;
        auto body = [=](benchmark::State &state) {
            Data &d = data_of(state.thread_index());
            std::vector<std::vector<double>> ratios(rivals.size());
            auto timed = [&](const Pass &p) {
                meet(state.threads());
                double start = seconds();
                for (int i = 0; i < repeat; i++) {
                    p(d, n);
                    benchmark::ClobberMemory();
                }
                meet(state.threads());
                return seconds() - start;
            };
            for (auto _ : state) {
                double own = timed(pass);
                state.SetIterationTime(own);
                for (size_t i = 0; i < rivals.size(); i++)
                    ratios[i].push_back(timed(rivals[i].pass) / own);
            }
            for (size_t i = 0; i < rivals.size(); i++) {
                std::sort(ratios[i].begin(), ratios[i].end());
                state.counters[rivals[i].counter] = benchmark::Counter(
                    ratios[i][ratios[i].size() / 2], benchmark::Counter::kAvgThreads);
            }
            state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * repeat *
                                    static_cast<int64_t>(n / 128 * bytes));
        };
        auto *b = benchmark::RegisterBenchmark((name + "/" + where(n)).c_str(), body);
        b->UseManualTime();
        if (n == MEMORY_ELEMENTS)
            b->Threads(static_cast<int>(std::thread::hardware_concurrency()));
    }
}

void copy(Data &d, size_t bytes)
{
    std::memcpy(static_cast<void *>(d.y), d.x, bytes);
}

void add_limits()
{
    add("memcpy", 512, [](Data &d, size_t n) { copy(d, n * 4); }, {}, {});
    add("read", 512, [](Data &d, size_t n) { qf_limit_traffic(d.x, d.y, n, 512, 0); }, {}, {});
    add("plain_loop", 512, [](Data &d, size_t n) { qf_plain_quantize(d.x, n, 0.0123f, d.q); }, {},
        {});
}

void add_kernels()
{
    for (const Kernel &kernel : kernels) {
        const Kernel e = kernel;
        Rival limit = {"x_limit",
                       [e](Data &d, size_t n) { qf_limit_traffic(d.x, d.y, n, e.read, e.write); }};
        Rival memory = {"x_memcpy", [e](Data &d, size_t n) { copy(d, n / 128 * e.read); }};
        Rival plain = {"x_plain",
                       [](Data &d, size_t n) { qf_plain_quantize(d.x, n, 0.0123f, d.q); }};
        for (size_t i = 0; qf_kernels_at(i); i++) {
            const qf_kernels *k = qf_kernels_at(i);
            std::vector<Rival> in_l1 = {memory}, in_memory = {limit, memory};
            if (std::strncmp(e.name, "quantize_", 9) == 0) {
                qf_divider divide = qf_limit_divider(k->name);
                in_l1 = {plain};
                if (divide)
                    in_l1.push_back({"x_divide", [divide](Data &d, size_t n) {
                                         float sum = divide(d.x, n, 0.0123f);
                                         benchmark::DoNotOptimize(sum);
                                     }});
            }
            add(
                std::string(e.name) + "/" + k->name, e.read,
                [e, k](Data &d, size_t n) { e.run(k, d, n, n == MEMORY_ELEMENTS); }, in_l1,
                in_memory);
        }
    }
}

} // namespace

int main(int argc, char **argv)
{
    benchmark::Initialize(&argc, argv);
    add_limits();
    add_kernels();
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
