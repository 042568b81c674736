// What this machine can do at most: its read bandwidth, and its peaks of multiply-adds. For reports, not for serving.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "paths.h"
#include "probe.h"
#include "step.h"

namespace r1 {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct ReadArgs {
  const uint8_t* data;
  int64_t bytes;
  uint64_t* sink;
};
constexpr int64_t kPiece = 1 << 24;
typedef uint64_t Line __attribute__((vector_size(64)));

Range read_range(const ReadArgs& a) { return {a.bytes / kPiece, 1}; }

#if defined(__x86_64__) && defined(__GLIBC__)
__attribute__((target_clones("default", "avx512f")))
#endif
void read_pieces(const ReadArgs& a, int64_t begin, int64_t end) {
  Line total[4] = {};
  for (int64_t piece = begin; piece < end; ++piece) {
    const uint8_t* p = a.data + piece * kPiece;
    for (int64_t i = 0; i < kPiece; i += 256)
      for (int j = 0; j < 4; ++j) {
        Line line;
        std::memcpy(&line, p + i + 64 * j, 64);
        total[j] ^= line;
      }
  }
  const Line all = (total[0] ^ total[1]) ^ (total[2] ^ total[3]);
  __atomic_fetch_xor(a.sink, all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7], __ATOMIC_RELAXED);
}

struct PeakArgs {
  int kind;
  int64_t rounds;
};
constexpr int64_t kRounds = 4096;
constexpr int kChains = 16;

Range peak_range(const PeakArgs& a) { return {a.rounds, 1}; }

// Whether a format is multiplied in matrix tiles.
bool in_tiles(int kind) { return kind < 2 && kernels().tiled; }

// Operations (a multiply-add is two) that one round does.
int64_t peak_ops(int kind) {
  if (in_tiles(kind)) return tile_ops(kind == 0) * kRounds;
  const int64_t per = kind == 0 ? 128 : kind == 1 ? 64 : 32;
  return kRounds * kChains * per;
}

#if defined(__x86_64__)
#define R1_TARGET __attribute__((target("avx512f,avx512dq,avx512vnni,avx512bf16")))

template <int KIND>
R1_TARGET void peak_of(int64_t begin, int64_t end) {
  for (int64_t round = begin; round < end; ++round) {
    __m512i sums[kChains];
    for (auto& sum : sums) sum = _mm512_setzero_si512();
    const __m512i b = _mm512_set1_epi32(static_cast<int>(round) & 0x01010101);
    for (int64_t i = 0; i < kRounds; ++i)
      for (int j = 0; j < kChains; ++j) {
        const __m512 sum = _mm512_castsi512_ps(sums[j]);
        if constexpr (KIND == 0) sums[j] = _mm512_dpbusd_epi32(sums[j], b, b);
        else if constexpr (KIND == 1)
          sums[j] = _mm512_castps_si512(_mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(b), reinterpret_cast<__m512bh>(b)));
        else sums[j] = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(b), _mm512_castsi512_ps(b), sum));
        asm volatile("" : "+v"(sums[j]));  // or the compiler would see through the loop
      }
  }
}

R1_TARGET void peak_rounds(const PeakArgs& a, int64_t begin, int64_t end) {
  if (in_tiles(a.kind)) tile_rounds(a.kind == 0, (end - begin) * kRounds);
  else if (a.kind == 0) peak_of<0>(begin, end);
  else if (a.kind == 1) peak_of<1>(begin, end);
  else peak_of<2>(begin, end);
}
bool has_peaks() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#else
void peak_rounds(const PeakArgs&, int64_t, int64_t) {}
bool has_peaks() { return false; }
#endif

}  // namespace

double read_bandwidth(const uint8_t* data, int64_t bytes, double seconds) {
  if (bytes < kPiece) throw std::invalid_argument("at least 16 MiB are needed to measure the bandwidth");
  uint64_t sink = 0;
  double best = 0;
  const double end = now() + seconds;
  do {
    const double start = now();
    submit(ReadArgs{data, bytes, &sink}, read_range, read_pieces);
    best = std::max(best, static_cast<double>(bytes / kPiece * kPiece) / (now() - start));
  } while (now() < end);
  return best;
}

double peak(const char* kind, double seconds) {
  const std::string name = kind;
  const int number = name == "int8" ? 0 : name == "bf16" ? 1 : name == "fp32" ? 2 : -1;
  if (number < 0) throw std::invalid_argument("there is no peak " + name + ": int8, bf16 or fp32");
  if (!has_peaks()) throw std::invalid_argument("peaks are measured on processors with AVX-512 VNNI and BF16 only");
  double best = 0;
  const double end = now() + seconds;
  const int64_t rounds = 64;
  do {
    const double start = now();
    submit(PeakArgs{number, rounds}, peak_range, peak_rounds);
    best = std::max(best, static_cast<double>(rounds * peak_ops(number)) / (now() - start));
  } while (now() < end);
  return best;
}

}  // namespace r1
