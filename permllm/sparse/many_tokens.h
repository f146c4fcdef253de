// Products with a packed weight of M = 2N for some tokens at once.
//
// Registers that hold one channel of several tokens need no permutation: a kept weight times the
// register of its channel is added to the tokens' sums, half as often as for a dense weight. The
// inputs are brought into that order first, channel by channel, a tile of tokens after the other.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "places.h"
#include "weights.h"

namespace permllm {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

// Tokens whose sums are two registers, and rows that share what is read of a group of channels.
constexpr int64_t kTile = 2 * kLanes, kRows = 4;
// Tiles whose inputs are brought into order at a time.
constexpr int64_t kTiles = 16;
// Products that are worth handing to another thread.
constexpr int64_t kUnitProducts = 1 << 17;

// Rows x Tokens outputs of one tile, x [c_in, Tokens].
template <int Bits, int Tokens, int Rows, typename Value>
void tile_of_tokens(const Value* values, const uint8_t* indices, int64_t kept, int64_t row_bytes,
                    const float* x, float (&out)[Rows][Tokens]) {
  constexpr int n = 1 << (Bits - 1), m = 1 << Bits, parts = Tokens / kLanes;
  Lanes sums[Rows][parts] = {};
  const int64_t whole = kept / 8 * 8;
  for (int64_t k = 0; k < whole; k += 8) {
    const float* channels = x + 2 * k * Tokens;
    // Unrolled, for the sums to stay in registers.
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      uint64_t word = 0;
      std::memcpy(&word, indices + r * row_bytes + k / 8 * Bits, Bits);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const uint64_t place = i / n * m + (word >> (i * Bits) & (m - 1));
        const Lanes weight = Lanes{} + static_cast<float>(values[r * kept + k + i]);
#pragma GCC unroll 2
        for (int part = 0; part < parts; ++part)
          sums[r][part] += weight * load(channels + place * Tokens + part * kLanes);
      }
    }
  }
  std::memcpy(out, sums, sizeof out);
  for (int r = 0; r < Rows; ++r)
    for_places(indices + r * row_bytes, row_bytes, whole, kept, n, m, Bits,
               [&](int64_t k, int64_t place) {
                 const float weight = static_cast<float>(values[r * kept + k]);
                 for (int t = 0; t < Tokens; ++t) out[r][t] += weight * x[place * Tokens + t];
               });
}

// The tokens from `first` on, at most Tokens of them, channel by channel; zeros beyond the last.
template <int Tokens, typename Value>
void by_channel(const Value* x, int64_t first, int64_t tokens, int64_t c_in, float* out) {
  const int64_t there = std::min<int64_t>(Tokens, tokens - first);
  for (int64_t channel = 0; channel < c_in; ++channel)
    for (int64_t t = 0; t < Tokens; ++t)
      out[channel * Tokens + t] =
          t < there ? static_cast<float>(x[(first + t) * c_in + channel]) : 0.0f;
}

// Whether the tokens that are left from `first` on fill one register at most.
inline bool narrow(int64_t first, int64_t tokens) { return tokens - first <= kLanes; }

// Rows from `row` on, for the tile of tokens from `first` on, whose inputs are in order.
template <int Bits, int Tokens, int Rows, typename Value>
void write_rows(const Problem<Values<Value>, Value>& p, int64_t row, int64_t first, const float* inputs) {
  float out[Rows][Tokens];
  tile_of_tokens<Bits, Tokens, Rows>(p.weight.row(row).values, p.indices + row * p.row_bytes, p.kept,
                                     p.row_bytes, inputs, out);
  const int64_t there = std::min<int64_t>(Tokens, p.tokens - first);
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t t = 0; t < there; ++t) p.write(first + t, row + r, out[r][t]);
}

template <int Bits, int Tokens, typename Value>
void write_block(const Problem<Values<Value>, Value>& p, int64_t row, int64_t first, const float* inputs) {
  if (row + kRows <= p.c_out) return write_rows<Bits, Tokens, kRows>(p, row, first, inputs);
  for (; row < p.c_out; ++row) write_rows<Bits, Tokens, 1>(p, row, first, inputs);
}

template <int Bits, typename Value>
void tiles_of_tokens(const Problem<Values<Value>, Value>& p) {
  const int64_t blocks = (p.c_out + kRows - 1) / kRows, size = p.c_in * kTile;
  const int64_t grain = std::max<int64_t>(1, kUnitProducts / std::max<int64_t>(1, size));
  std::vector<float> inputs;
  for (int64_t begin = 0; begin < p.tokens; begin += kTiles * kTile) {
    const int64_t tiles = (std::min(kTiles * kTile, p.tokens - begin) + kTile - 1) / kTile;
    inputs.resize(tiles * size);
    at::parallel_for(0, tiles, grain, [&](int64_t tile, int64_t end) {
      for (; tile < end; ++tile) {
        const int64_t first = begin + tile * kTile;
        float* out = inputs.data() + tile * size;
        if (narrow(first, p.tokens)) by_channel<kLanes>(p.x, first, p.tokens, p.c_in, out);
        else by_channel<kTile>(p.x, first, p.tokens, p.c_in, out);
      }
    });
    at::parallel_for(0, tiles * blocks, grain, [&](int64_t unit, int64_t end) {
      for (; unit < end; ++unit) {
        const int64_t first = begin + unit / blocks * kTile, row = unit % blocks * kRows;
        const float* in = inputs.data() + unit / blocks * size;
        if (narrow(first, p.tokens)) write_block<Bits, kLanes>(p, row, first, in);
        else write_block<Bits, kTile>(p, row, first, in);
      }
    });
  }
}

// x [tokens, c_in] times a weight of n:2n, n of 1, 2, 4 or 8, summed in float32.
template <typename Value>
void many_tokens(const Problem<Values<Value>, Value>& p, int64_t n) {
  if (n == 1) tiles_of_tokens<1>(p);
  if (n == 2) tiles_of_tokens<2>(p);
  if (n == 4) tiles_of_tokens<3>(p);
  if (n == 8) tiles_of_tokens<4>(p);
}

}  // namespace permllm
