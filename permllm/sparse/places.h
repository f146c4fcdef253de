// A weight as permllm/core/packing.py packs it, and where the kept values of a row stand.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace permllm {

// The weight as it is packed, x [tokens, c_in], y [tokens, c_out].
template <typename Value, typename Input>
struct Problem {
  const Value* values;
  const uint8_t* indices;
  const Input* x;
  const float* bias;  // or null
  Value* y;
  int64_t tokens, c_in, c_out, kept, row_bytes;
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
