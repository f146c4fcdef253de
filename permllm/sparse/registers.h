// What rows.h needs of a machine, for M = 2N (1:2, 2:4, 4:8, 8:16).
//
// A register of kept weights meets exactly two registers of inputs. A machine says how many
// lanes a register of values has, reads the places of as many values (`Bits` bits each, from
// lanes * Bits / 8 bytes), picks the inputs and multiplies. It takes `rows` rows at once.

#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

#include "weights.h"

namespace permllm {

using c10::BFloat16;

// A machine for one row at a time, of the registers that it has.
template <class Registers>
struct OneRow : Registers {
  static constexpr int rows = 1;
  using Sum = typename Registers::Sum;

  template <int Bits>
  static auto places(const uint8_t* const* rows, int64_t at) {
    return Registers::template places_at<Bits>(rows[0] + at);
  }
  template <class Row>
  static auto values(const Row* rows, int64_t k) {
    return Registers::load(rows[0].from(k));
  }
  template <class Row>
  static Sum scaled(Sum sum, const Row* rows, int64_t part, Sum own) {
    return Registers::scaled_by(sum, rows[0].scale(part), own);
  }
  static std::array<float, 1> totals(Sum sum) { return {Registers::total(sum)}; }
};

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define PERMLLM_REGISTERS 1

struct FloatRegisters {
  using Input = float;
  using Sum = __m512;
  static constexpr int lanes = 16;
  struct Inputs { __m512 low, high; };

  static Sum zero() { return _mm512_setzero_ps(); }
  static float total(Sum sum) { return _mm512_reduce_add_ps(sum); }
  static Inputs inputs(const float* x) { return {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)}; }
  static __m512 load(const float* v) { return _mm512_loadu_ps(v); }
  static __m512 load(const BFloat16* v) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  template <int Bits>
  static __m512i places_at(const uint8_t* bytes) {
    // Eight numbers are Bits bytes: the lower eight lanes shift one word, the upper another.
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    uint32_t low = 0, high = 0;
    __m512i words;
    int wrap = 7;
    if constexpr (Bits <= 2) {
      std::memcpy(&low, bytes, 2 * Bits);
      words = _mm512_set1_epi32(static_cast<int>(low));
      wrap = 15;
    } else {
      std::memcpy(&low, bytes, Bits);
      std::memcpy(&high, bytes + Bits, Bits);
      words = _mm512_inserti64x4(_mm512_set1_epi32(static_cast<int>(low)),
                                 _mm256_set1_epi32(static_cast<int>(high)), 1);
    }
    const __m512i shifts =
        _mm512_mullo_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(wrap)), _mm512_set1_epi32(Bits));
    const __m512i base = _mm512_slli_epi32(_mm512_srli_epi32(lane, Bits - 1), Bits);
    const __m512i mask = _mm512_set1_epi32((1 << Bits) - 1);
    return _mm512_or_si512(_mm512_and_si512(_mm512_srlv_epi32(words, shifts), mask), base);
  }
  static Sum fused(Sum sum, __m512 values, __m512i places, const Inputs& x) {
    return _mm512_fmadd_ps(values, _mm512_permutex2var_ps(x.low, places, x.high), sum);
  }
  static Sum scaled_by(Sum sum, float scale, Sum part) {
    return _mm512_fmadd_ps(_mm512_set1_ps(scale), part, sum);
  }
  static __m512 load(Code<8> codes) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes.bytes))));
  }
  static __m512 load(Code<4> codes) {
    uint32_t low = 0, high = 0;
    std::memcpy(&low, codes.bytes, 4);
    std::memcpy(&high, codes.bytes + 4, 4);
    const __m512i words = _mm512_inserti64x4(_mm512_set1_epi32(static_cast<int>(low)),
                                             _mm256_set1_epi32(static_cast<int>(high)), 1);
    // Each lane's four bits go to the top, and back down with their sign.
    const __m512i shifts =
        _mm512_set_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_sllv_epi32(words, shifts), 28));
  }
};

#elif defined(__AVX2__) && defined(__FMA__)
#define PERMLLM_REGISTERS 1

struct FloatRegisters {
  using Input = float;
  using Sum = __m256;
  static constexpr int lanes = 8;
  struct Inputs { __m256 low, high; };

  static Sum zero() { return _mm256_setzero_ps(); }
  static float total(Sum sum) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static Inputs inputs(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
  static __m256 load(const float* v) { return _mm256_loadu_ps(v); }
  static __m256 load(const BFloat16* v) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  template <int Bits>
  static __m256i places_at(const uint8_t* bytes) {
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    uint32_t word = 0;
    std::memcpy(&word, bytes, Bits);
    const __m256i shifts = _mm256_mullo_epi32(lane, _mm256_set1_epi32(Bits));
    const __m256i base = _mm256_slli_epi32(_mm256_srli_epi32(lane, Bits - 1), Bits);
    const __m256i mask = _mm256_set1_epi32((1 << Bits) - 1);
    const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shifts);
    return _mm256_or_si256(_mm256_and_si256(codes, mask), base);
  }
  static Sum fused(Sum sum, __m256 values, __m256i places, const Inputs& x) {
    // The fourth bit says which of the two registers; it becomes the sign that blendv reads.
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(places, 28));
    const __m256 picked = _mm256_blendv_ps(_mm256_permutevar8x32_ps(x.low, places),
                                           _mm256_permutevar8x32_ps(x.high, places), upper);
    return _mm256_fmadd_ps(values, picked, sum);
  }
  static Sum scaled_by(Sum sum, float scale, Sum part) {
    return _mm256_fmadd_ps(_mm256_set1_ps(scale), part, sum);
  }
  static __m256 load(Code<8> codes) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes.bytes))));
  }
  static __m256 load(Code<4> codes) {
    uint32_t word = 0;
    std::memcpy(&word, codes.bytes, 4);
    // Each lane's four bits go to the top, and back down with their sign.
    const __m256i shifts = _mm256_set_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i top = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shifts);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28));
  }
};

#define PERMLLM_PAIRS 1

// Two rows of 2:4 at once, a and b. Registers hold two groups of both, [a a b b | a a b b], and
// meet one register of inputs: a permutation within its halves fetches eight that are needed, where
// one row alone has no use for half of them.
struct Pairs {
  // Eight numbers of each row: those of the first two groups, and of the next two.
  struct Two { __m256 first, second; };
  struct Places { __m256i first, second; };
  using Input = float;
  using Inputs = FloatRegisters::Inputs;
  using Sum = Two;
  static constexpr int lanes = 8, rows = 2;

  static Two zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Inputs inputs(const float* x) { return FloatRegisters::inputs(x); }
  template <int Bits>
  static Places places(const uint8_t* const* rows, int64_t at) {
    static_assert(Bits == 2);
    uint32_t of_a = 0, of_b = 0;
    std::memcpy(&of_a, rows[0] + at, 2);
    std::memcpy(&of_b, rows[1] + at, 2);
    const __m256i word = _mm256_set1_epi32(static_cast<int>(of_a | of_b << 16));
    // The permutation looks at two bits of each lane.
    return {_mm256_srlv_epi32(word, _mm256_setr_epi32(0, 2, 16, 18, 4, 6, 20, 22)),
            _mm256_srlv_epi32(word, _mm256_setr_epi32(8, 10, 24, 26, 12, 14, 28, 30))};
  }
  template <class Row>
  static Two values(const Row* rows, int64_t k) {
    return load(rows[0].from(k), rows[1].from(k));
  }
  static Two fused(const Two& sums, const Two& values, const Places& places, const Inputs& x) {
    return {_mm256_fmadd_ps(values.first, _mm256_permutevar_ps(x.low, places.first), sums.first),
            _mm256_fmadd_ps(values.second, _mm256_permutevar_ps(x.high, places.second),
                            sums.second)};
  }
  template <class Row>
  static Two scaled(const Two& sums, const Row* rows, int64_t part, const Two& own) {
    const float a = rows[0].scale(part), b = rows[1].scale(part);
    const __m256 scales = _mm256_setr_ps(a, a, b, b, a, a, b, b);
    return {_mm256_fmadd_ps(scales, own.first, sums.first),
            _mm256_fmadd_ps(scales, own.second, sums.second)};
  }
  // Each row's numbers get the lanes that they have where a row is alone.
  static std::array<float, 2> totals(const Two& sums) {
    const __m256d first = _mm256_castps_pd(sums.first), second = _mm256_castps_pd(sums.second);
    const auto total = [](__m256d of_row) {
      return FloatRegisters::total(
          _mm256_castpd_ps(_mm256_permute4x64_pd(of_row, 0b11011000)));
    };
    return {total(_mm256_unpacklo_pd(first, second)), total(_mm256_unpackhi_pd(first, second))};
  }

 private:
  static Two load(Code<8> a, Code<8> b) {
    const __m128i both =
        _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a.bytes)),
                           _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b.bytes)));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(both)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(both, both)))};
  }
  static Two load(Code<4> a, Code<4> b) {
    int of_a, of_b;
    std::memcpy(&of_a, a.bytes, 4);
    std::memcpy(&of_b, b.bytes, 4);
    const __m128i both = _mm_unpacklo_epi8(_mm_cvtsi32_si128(of_a), _mm_cvtsi32_si128(of_b));
    // Each lane's four bits go to the top, and back down with their sign.
    const __m256i shifts = _mm256_set_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i first = _mm256_sllv_epi32(_mm256_broadcastd_epi32(both), shifts);
    const __m256i second =
        _mm256_sllv_epi32(_mm256_broadcastd_epi32(_mm_srli_epi64(both, 32)), shifts);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(first, 28)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(second, 28))};
  }
  static Two load(const BFloat16* a, const BFloat16* b) {
    const __m128i of_a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
    const __m128i of_b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
    const __m256i first = _mm256_cvtepu16_epi32(_mm_unpacklo_epi32(of_a, of_b));
    const __m256i second = _mm256_cvtepu16_epi32(_mm_unpackhi_epi32(of_a, of_b));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(first, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(second, 16))};
  }
  static Two load(const float* a, const float* b) {
    const __m256d of_a = _mm256_castps_pd(_mm256_loadu_ps(a));
    const __m256d of_b = _mm256_castps_pd(_mm256_loadu_ps(b));
    const __m256 low = _mm256_castpd_ps(_mm256_unpacklo_pd(of_a, of_b));
    const __m256 high = _mm256_castpd_ps(_mm256_unpackhi_pd(of_a, of_b));
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
  }
};
#endif

#if defined(PERMLLM_REGISTERS) && defined(__AVX512BF16__)
#define PERMLLM_BFLOAT16 1

// bfloat16 by bfloat16, pairs summed in float32: twice the values of a register of floats.
struct HalfRegisters {
  using Input = BFloat16;
  using Sum = __m512;
  static constexpr int lanes = 32;
  struct Inputs { __m512i low, high; };

  static Sum zero() { return _mm512_setzero_ps(); }
  static float total(Sum sum) { return _mm512_reduce_add_ps(sum); }
  static Inputs inputs(const BFloat16* x) {
    return {_mm512_loadu_si512(x), _mm512_loadu_si512(x + 32)};
  }
  // For each lane the two bytes that its number begins in, how far up, and its group's begin.
  template <int Bits>
  struct Layout {
    alignas(64) uint8_t bytes[64];
    alignas(64) uint16_t shifts[32], base[32];
    constexpr Layout() : bytes(), shifts(), base() {
      for (int lane = 0; lane < 32; ++lane) {
        const int bit = lane * Bits;
        bytes[2 * lane] = static_cast<uint8_t>(bit / 8);
        bytes[2 * lane + 1] = bit % 8 + Bits > 8 ? static_cast<uint8_t>(bit / 8 + 1) : 0x80;
        shifts[lane] = static_cast<uint16_t>(bit % 8);
        base[lane] = static_cast<uint16_t>((lane >> (Bits - 1)) << Bits);
      }
    }
  };
  // As many numbers, in every quarter of a register.
  template <int Bits>
  static __m512i numbers(const uint8_t* bytes) {
    if constexpr (Bits == 4)
      return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    uint64_t low = 0;
    std::memcpy(&low, bytes, std::min(4 * Bits, 8));
    if constexpr (Bits < 3) return _mm512_set1_epi64(static_cast<int64_t>(low));
    uint32_t high = 0;
    std::memcpy(&high, bytes + 8, 4);
    return _mm512_broadcast_i32x4(_mm_set_epi64x(high, static_cast<int64_t>(low)));
  }
  template <int Bits>
  static __m512i places_at(const uint8_t* bytes) {
    static constexpr Layout<Bits> layout;
    const __m512i pairs = _mm512_shuffle_epi8(numbers<Bits>(bytes), _mm512_load_si512(layout.bytes));
    const __m512i codes = _mm512_srlv_epi16(pairs, _mm512_load_si512(layout.shifts));
    return _mm512_or_si512(_mm512_and_si512(codes, _mm512_set1_epi16((1 << Bits) - 1)),
                           _mm512_load_si512(layout.base));
  }
  static Sum fused(Sum sum, __m512i values, __m512i places, const Inputs& x) {
    const __m512i picked = _mm512_permutex2var_epi16(x.low, places, x.high);
    return _mm512_dpbf16_ps(sum, (__m512bh)values, (__m512bh)picked);
  }
  static Sum scaled_by(Sum sum, float scale, Sum part) {
    return _mm512_fmadd_ps(_mm512_set1_ps(scale), part, sum);
  }
  static __m512i load(const BFloat16* v) { return _mm512_loadu_si512(v); }
  // Codes are whole numbers of few bits, which bfloat16 has.
  static __m512i load(Code<8> codes) {
    const auto sixteen = [&](int first) {
      return FloatRegisters::load(Code<8>{codes.bytes + first});
    };
    return (__m512i)_mm512_cvtne2ps_pbh(sixteen(16), sixteen(0));
  }
  static __m512i load(Code<4> codes) {
    static constexpr Layout<4> layout;
    // The permutation looks at five bits of each lane, of which the fifth is the next code's.
    alignas(64) static constexpr uint16_t floats[32] = {
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0,
        0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80,
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0,
        0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
    const __m512i bytes = _mm512_shuffle_epi8(numbers<4>(codes.bytes), _mm512_load_si512(layout.bytes));
    const __m512i lanes = _mm512_srlv_epi16(bytes, _mm512_load_si512(layout.shifts));
    return _mm512_permutexvar_epi16(lanes, _mm512_load_si512(floats));
  }
};

using Halves = OneRow<HalfRegisters>;
#endif

#ifdef PERMLLM_REGISTERS
using Floats = OneRow<FloatRegisters>;
#else
// Names a machine where there is none.
struct Floats {};
#endif

#if defined(PERMLLM_REGISTERS) && defined(__AVX512F__) && defined(__AVX512VBMI2__)
#define PERMLLM_EXPAND 1

struct MasksOfBytes {
  uint8_t of[256];
  constexpr MasksOfBytes() : of() {
    for (int byte = 0; byte < 256; ++byte)
      of[byte] = static_cast<uint8_t>(1 << (byte & 3) | 1 << (byte >> 2 & 3) |
                                      16 << (byte >> 4 & 3) | 16 << (byte >> 6));
  }
};

// Which of 32 entries the next 16 numbers keep.
template <int Bits>
uint32_t kept_of_32(const uint8_t* bytes) {
  static constexpr MasksOfBytes masks;
  if constexpr (Bits == 2)
    return masks.of[bytes[0]] | masks.of[bytes[1]] << 8 | masks.of[bytes[2]] << 16 |
           static_cast<uint32_t>(masks.of[bytes[3]]) << 24;
  uint64_t word = 0;
  std::memcpy(&word, bytes, 2 * Bits);
  uint32_t kept = 0;
  for (int k = 0; k < 16; ++k, word >>= Bits)
    kept |= uint32_t{1} << (((k >> (Bits - 1)) << Bits) + (word & ((1 << Bits) - 1)));
  return kept;
}

inline void expand(const uint16_t* in, uint32_t kept, uint16_t* out) {
  const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  _mm512_storeu_si512(out, _mm512_maskz_expand_epi16(kept, _mm512_castsi256_si512(values)));
}

inline void expand(const uint32_t* in, uint32_t kept, uint32_t* out) {
  const __m512i values = _mm512_loadu_si512(in);
  const int first = __builtin_popcount(kept & 0xFFFF);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i later =
      _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(first)), values);
  _mm512_storeu_si512(out, _mm512_maskz_expand_epi32(static_cast<__mmask16>(kept), values));
  _mm512_storeu_si512(out + 16,
                      _mm512_maskz_expand_epi32(static_cast<__mmask16>(kept >> 16), later));
}
#endif

}  // namespace permllm
