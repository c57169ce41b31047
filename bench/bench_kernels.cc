// SPDX-License-Identifier: Apache-2.0
// Every kernel of every instruction set, and in the same run what the machine can do at most for
// the same bytes. Names are KERNEL/ISA/WHERE: L1 is one thread on data in the first-level cache,
// memory is all threads on data larger than the last-level cache. The figure is bytes of source a
// second; a label names the limit that the last lines compare with. Repetitions are interleaved,
// because figures of different moments do not compare on a shared machine.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
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
         for (size_t i = 0; i < n; i += COLUMNS)
             k->quantize_columns_f32(d.x + i, COLUMNS, d.scales, -128, 127, {d.q + i, nullptr, s});
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
     [](const qf_kernels *k, Data &d, size_t n, bool) { k->absmax(d.x, n, d.max); }},
    {"absmax_columns", 512, 0,
     [](const qf_kernels *k, Data &d, size_t n, bool) {
         for (size_t i = 0; i < n; i += COLUMNS)
             k->absmax_columns(d.x + i, COLUMNS, d.max);
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

std::string limit_name(size_t read, size_t write)
{
    return "limit_read" + std::to_string(read) + "_write" + std::to_string(write);
}

const char *where(size_t n)
{
    return n == L1_ELEMENTS ? "L1" : "memory";
}

// Registers `run` on both sizes. `bytes` of source for each 128 elements are what is counted.
template <class F> void add(const std::string &name, size_t bytes, const std::string &limit, F run)
{
    for (size_t n : {L1_ELEMENTS, MEMORY_ELEMENTS}) {
        auto body = [=](benchmark::State &state) {
            Data &d = data_of(state.thread_index());
            for (auto _ : state) {
                run(d, n);
                benchmark::ClobberMemory();
            }
            state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                                    static_cast<int64_t>(n / 128 * bytes));
            state.SetLabel(limit);
        };
        auto *b = benchmark::RegisterBenchmark((name + "/" + where(n)).c_str(), body);
        b->UseRealTime();
        if (n == MEMORY_ELEMENTS)
            b->Threads(static_cast<int>(std::thread::hardware_concurrency()));
    }
}

void add_limits()
{
    add("memcpy", 512, "",
        [](Data &d, size_t n) { std::memcpy(static_cast<void *>(d.y), d.x, n * 4); });
    std::map<std::string, bool> known;
    for (const Kernel &k : kernels) {
        std::string name = limit_name(k.read, k.write);
        if (known.emplace(name, true).second)
            add(name, k.read, "",
                [=](Data &d, size_t n) { qf_limit_traffic(d.x, d.y, n, k.read, k.write); });
    }
    add("plain_loop", 512, limit_name(512, 128),
        [](Data &d, size_t n) { qf_plain_quantize(d.x, n, 0.0123f, d.q); });
    for (size_t i = 0; qf_kernels_at(i); i++) {
        qf_divider divide = qf_limit_divider(qf_kernels_at(i)->name);
        if (divide)
            add(std::string("divide/") + qf_kernels_at(i)->name, 512, "", [=](Data &d, size_t n) {
                float sum = divide(d.x, n, 0.0123f);
                benchmark::DoNotOptimize(sum);
            });
    }
}

void add_kernels()
{
    for (const Kernel &kernel : kernels) {
        for (size_t i = 0; qf_kernels_at(i); i++) {
            const qf_kernels *k = qf_kernels_at(i);
            Run run = kernel.run;
            add(std::string(kernel.name) + "/" + k->name, kernel.read,
                limit_name(kernel.read, kernel.write),
                [=](Data &d, size_t n) { run(k, d, n, n == MEMORY_ELEMENTS); });
        }
    }
}

// Keeps the rates of all repetitions, and prints medians and their ratios at the end.
class Ratios : public benchmark::ConsoleReporter
{
  public:
    void ReportRuns(const std::vector<Run> &runs) override
    {
        for (const Run &run : runs) {
            if (run.run_type != Run::RT_Iteration || run.error_occurred)
                continue;
            std::string name = run.benchmark_name();
            name = name.substr(0, name.find("/real_time"));
            rates[name].push_back(run.counters.at("bytes_per_second"));
            limits[name] = run.report_label;
        }
    }

    void table()
    {
        std::printf("%-40s %8s %9s %8s %8s %8s\n", "kernel/isa/where", "GB/s", "x memcpy",
                    "x limit", "x divide", "x plain");
        for (const auto &entry : rates) {
            const std::string &name = entry.first;
            std::string place = name.substr(name.rfind('/'));
            std::string isa = name.substr(0, name.rfind('/'));
            isa = isa.substr(isa.rfind('/') + 1);
            bool division = name.compare(0, 9, "quantize_") == 0;
            std::printf("%-40s %8.1f %9s %8s %8s %8s\n", name.c_str(), median(name) * 1e-9,
                        ratio(name, "memcpy" + place).c_str(),
                        ratio(name, limits[name] + place).c_str(),
                        division ? ratio(name, "divide/" + isa + place).c_str() : "",
                        division ? ratio(name, "plain_loop" + place).c_str() : "");
        }
    }

  private:
    double median(const std::string &name)
    {
        std::vector<double> &v = rates[name];
        std::sort(v.begin(), v.end());
        return v.empty() ? 0 : v[v.size() / 2];
    }

    std::string ratio(const std::string &name, const std::string &to)
    {
        char text[32] = "";
        if (rates.count(to))
            std::snprintf(text, sizeof text, "%.2f", median(name) / median(to));
        return text;
    }

    std::map<std::string, std::vector<double>> rates;
    std::map<std::string, std::string> limits;
};

} // namespace

int main(int argc, char **argv)
{
    std::vector<char *> args(argv, argv + argc);
    char repetitions[] = "--benchmark_repetitions=5";
    char interleaved[] = "--benchmark_enable_random_interleaving=true";
    char brief[] = "--benchmark_min_time=0.05";
    args.insert(args.begin() + 1, {repetitions, interleaved, brief});
    int count = static_cast<int>(args.size());
    benchmark::Initialize(&count, args.data());
    add_limits();
    add_kernels();
    Ratios ratios;
    benchmark::RunSpecifiedBenchmarks(&ratios);
    ratios.table();
    benchmark::Shutdown();
    return 0;
}
