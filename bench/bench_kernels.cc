// SPDX-License-Identifier: Apache-2.0
// Kernels of every variant against memcpy and a plain read of the same bytes in the same run; the
// figure is bytes of float32 input a second. Ratios mean more than absolute numbers on a shared
// machine.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <vector>

extern "C" {
#include "kernels.h"
}

namespace
{

#define QF_KERNELS(variant, flags) &qf_kernels_##variant,
const qf_kernels *const variants[] = {
#include "kernels.inc"
};
#undef QF_KERNELS

struct Data {
    std::vector<float> x, y, scales;
    std::vector<int8_t> q;
    explicit Data(size_t n) : x(n), y(n), scales(n), q(n)
    {
        for (size_t i = 0; i < n; i++) {
            x[i] = static_cast<float>(static_cast<int>(i * 2654435761u >> 20) - 2048) * 1e-3f;
            scales[i] = 0.0123f + 1e-6f * static_cast<float>(i % 97);
        }
    }
};

void report(benchmark::State &state, size_t n)
{
    state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(n) * 4);
}

void bench_memcpy(benchmark::State &state)
{
    Data d(static_cast<size_t>(state.range(0)));
    for (auto _ : state) {
        std::memcpy(d.y.data(), d.x.data(), d.x.size() * 4);
        benchmark::ClobberMemory();
    }
    report(state, d.x.size());
}

void bench_read(benchmark::State &state)
{
    Data d(static_cast<size_t>(state.range(0)));
    for (auto _ : state) {
        uint64_t sum = 0;
        for (float f : d.x) {
            uint32_t bits;
            std::memcpy(&bits, &f, 4);
            sum += bits;
        }
        benchmark::DoNotOptimize(sum);
    }
    report(state, d.x.size());
}

template <class Run> void register_kernel(const char *family, const qf_kernels *k, Run run)
{
    std::string name = std::string(family) + "/" + k->name;
    benchmark::RegisterBenchmark(name.c_str(),
                                 [k, run](benchmark::State &state) {
                                     Data d(static_cast<size_t>(state.range(0)));
                                     for (auto _ : state) {
                                         run(k, d);
                                         benchmark::ClobberMemory();
                                     }
                                     report(state, d.x.size());
                                 })
        ->Arg(16 * 1024)
        ->Arg(16 * 1024 * 1024);
}

void register_all()
{
    benchmark::RegisterBenchmark("memcpy", bench_memcpy)->Arg(16 * 1024)->Arg(16 * 1024 * 1024);
    benchmark::RegisterBenchmark("read", bench_read)->Arg(16 * 1024)->Arg(16 * 1024 * 1024);
    for (const qf_kernels *k : variants) {
        register_kernel("quantize", k, [](const qf_kernels *v, Data &d) {
            v->quantize(d.x.data(), d.x.size(), 0.0123f, -128, 127, d.q.data());
        });
        register_kernel("quantize_columns", k, [](const qf_kernels *v, Data &d) {
            v->quantize_columns(d.x.data(), d.x.size(), d.scales.data(), -128, 127, d.q.data());
        });
        register_kernel("widen", k, [](const qf_kernels *v, Data &d) {
            v->widen(d.q.data(), d.q.size(), d.y.data());
        });
        register_kernel("load_f16", k, [](const qf_kernels *v, Data &d) {
            v->load_f16(d.x.data(), d.x.size(), d.y.data());
        });
        register_kernel("pack_nibbles", k, [](const qf_kernels *v, Data &d) {
            v->pack_nibbles(d.q.data(), d.q.data() + 1, 2, d.q.size() / 2,
                            reinterpret_cast<uint8_t *>(d.y.data()));
        });
    }
}

} // namespace

int main(int argc, char **argv)
{
    benchmark::Initialize(&argc, argv);
    register_all();
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
