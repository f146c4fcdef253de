// A weight as permllm/core/packing.py packs it, and where the kept values of a row stand.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace permllm {

// x [tokens, c_in] and a weight, of which weights.h has the kinds, give y [tokens, c_out].
template <class Weight, typename Input>
struct Problem {
  Weight weight;
  const uint8_t* indices;
  const Input* x;
  const float* bias;  // or null
  typename Weight::Output* y;
  int64_t tokens, c_in, c_out, kept, row_bytes;

  // The place of an output, whose sum is made.
  void write(int64_t token, int64_t row, float sum) const {
    y[token * c_out + row] =
        static_cast<typename Weight::Output>(sum + (bias ? bias[row] : 0.0f));
  }
};

inline int index_bits(int64_t m) {
  int bits = 0;
  while ((int64_t{1} << bits) < m) ++bits;
  return bits;
}

// Eight numbers of at most 8 bits, beginning at number `first`, a multiple of 8.
inline uint64_t eight_codes(const uint8_t* row, int64_t row_bytes, int64_t first, int bits) {
  const int64_t begin = first / 8 * bits;
  uint64_t word = 0;
  std::memcpy(&word, row + begin, std::min<int64_t>(bits, row_bytes - begin));
  return word;
}

// Calls visit(k, place) for the values k in [begin, end) of a row; begin is a multiple of 8.
template <typename Visit>
inline void for_places(const uint8_t* row, int64_t row_bytes, int64_t begin, int64_t end,
                       int64_t n, int64_t m, int bits, const Visit& visit) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  int64_t group = begin / n, within = begin % n;
  for (int64_t first = begin; first < end; first += 8) {
    uint64_t word = eight_codes(row, row_bytes, first, bits);
    for (int64_t k = first; k < std::min(first + 8, end); ++k, word >>= bits) {
      visit(k, group * m + static_cast<int64_t>(word & mask));
      if (++within == n) within = 0, ++group;
    }
  }
}

}  // namespace permllm
