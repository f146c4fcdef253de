// Products with packed N:M weights for a few tokens, row by row.
//
// Decoding reads every weight once for a handful of tokens, so that memory sets the pace and
// half the bytes are half the time, if the places of the kept weights cost less than reading
// them. For M = 2N (1:2, 2:4, 4:8, 8:16) a register of kept weights meets exactly two registers
// of inputs, and one permutation of the two fetches the inputs that it needs. Other patterns
// and machines without AVX2 take a plain loop, which permllm does not choose by itself.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "places.h"
#include "registers.h"
#include "weights.h"

namespace permllm {

// --- any N:M: the values and places of a row once, then a loop for every token ------------

template <class Weight, typename Input>
void plain_rows(const Problem<Weight, Input>& p, int64_t n, int64_t m, int64_t begin, int64_t end) {
  std::vector<int32_t> places(p.kept);
  std::vector<float> values(p.kept);
  for (; begin < end; ++begin) {
    const auto row = p.weight.row(begin);
    for_places(p.indices + begin * p.row_bytes, p.row_bytes, 0, p.kept, n, m, index_bits(m),
               [&](int64_t k, int64_t place) {
                 places[k] = static_cast<int32_t>(place);
                 values[k] = row.at(k);
               });
    for (int64_t token = 0; token < p.tokens; ++token) {
      const Input* x = p.x + token * p.c_in;
      float parts[4] = {0, 0, 0, 0};
      for (int64_t k = 0; k < p.kept; ++k)
        parts[k % 4] += values[k] * static_cast<float>(x[places[k]]);
      p.write(token, begin, (parts[0] + parts[1]) + (parts[2] + parts[3]));
    }
  }
}

inline void narrow(float value, float& out) { out = value; }

// To the nearest bfloat16, without the branch for what is no number.
inline void narrow(float value, BFloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  out.x = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The values of a row, each with its scale.
template <class Row, typename Output>
void decode_row(const Row& row, int64_t kept, Output* out) {
  for (int64_t first = 0, part = 0; first < kept; first += row.part, ++part) {
    const float scale = row.scale(part);
    const int64_t end = std::min(first + row.part, kept);
    int64_t k = first;
#ifdef PERMLLM_REGISTERS
    constexpr int lanes = FloatRegisters::lanes;
    // A byte holds two codes at most, so that a register of them has to begin with one.
    for (; k % 8 == 0 && k + lanes <= end; k += lanes) {
      float raw[lanes];
      const auto loaded = FloatRegisters::load(row.from(k));
      std::memcpy(raw, &loaded, sizeof raw);
      for (int i = 0; i < lanes; ++i) narrow(raw[i] * scale, out[k + i]);
    }
#endif
    for (; k < end; ++k) narrow(row.raw(k) * scale, out[k]);
  }
}

// --- M = 2N: registers ------------------------------------------------------------------

#ifdef PERMLLM_REGISTERS

// Processors fetch by themselves what follows on a page, but not the next page.
constexpr uintptr_t kPage = 4096;

inline void fetch_ahead(const void* at) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + kPage));
}

// Rows that are so far apart x Tokens outputs at once: places are read once for all tokens, inputs
// for all rows. A row's sum has the same bits whichever others it is beside.
template <class Machine, int Bits, int Rows, int Tokens, class Weight>
void tile(const Problem<Weight, typename Machine::Input>& p, int64_t row, int64_t apart,
          int64_t token) {
  // A machine takes one row at a time, or two.
  constexpr int lanes = Machine::lanes, step = Machine::rows, units = Rows / step;
  const uint8_t* indices[Rows];
  typename Weight::Row weights[Rows];
  for (int r = 0; r < Rows; ++r) {
    indices[r] = p.indices + (row + r * apart) * p.row_bytes;
    weights[r] = p.weight.row(row + r * apart);
  }
  const auto* x = p.x + token * p.c_in;
  typename Machine::Sum sums[units][Tokens];
  for (auto& of_unit : sums)
    for (auto& sum : of_unit) sum = Machine::zero();
  const int64_t whole = p.kept / lanes * lanes;
  for (int64_t first = 0, part = 0; first < whole; first += p.weight.part, ++part) {
    typename Machine::Sum own[units][Tokens];
    for (auto& of_unit : own)
      for (auto& sum : of_unit) sum = Machine::zero();
    const int64_t end = std::min(first + p.weight.part, whole);
    for (int64_t k = first; k < end; k += lanes) {
      typename Machine::Inputs inputs[Tokens];
      for (int t = 0; t < Tokens; ++t) inputs[t] = Machine::inputs(x + t * p.c_in + 2 * k);
      // Beside four tokens in short registers it costs more than it saves.
      if constexpr (Tokens == 1 || lanes > 8)
        if (k % Weight::line == 0)
          for (int r = 0; r < Rows; ++r) {
            fetch_ahead(indices[r] + bytes_of(k, Bits));
            fetch_ahead(weights[r].from(k));
          }
      for (int u = 0; u < units; ++u) {
        const auto places = Machine::template places<Bits>(indices + u * step, bytes_of(k, Bits));
        const auto values = Machine::values(weights + u * step, k);
        for (int t = 0; t < Tokens; ++t)
          own[u][t] = Machine::fused(own[u][t], values, places, inputs[t]);
      }
    }
    for (int u = 0; u < units; ++u)
      for (int t = 0; t < Tokens; ++t)
        if constexpr (Weight::scaled)
          sums[u][t] = Machine::scaled(sums[u][t], weights + u * step, part, own[u][t]);
        else
          sums[u][t] = own[u][t];
  }
  for (int t = 0; t < Tokens; ++t) {
    for (int u = 0; u < units; ++u) {
      auto totals = Machine::totals(sums[u][t]);
      for (int r = 0; r < step; ++r) {
        const int one = u * step + r;
        for_places(indices[one], p.row_bytes, whole, p.kept, 1 << (Bits - 1), 1 << Bits, Bits,
                   [&](int64_t k, int64_t place) {
                     totals[r] += weights[one].at(k) * static_cast<float>(x[t * p.c_in + place]);
                   });
        p.write(token + t, row + one * apart, totals[r]);
      }
    }
  }
}

template <class Machine, int Bits, int Rows, class Weight>
void rows_by_tokens(const Problem<Weight, typename Machine::Input>& p, int64_t row, int64_t apart,
                    int64_t token, int64_t end) {
  for (; token + 4 <= end; token += 4) tile<Machine, Bits, Rows, 4>(p, row, apart, token);
  if (token + 2 <= end) {
    tile<Machine, Bits, Rows, 2>(p, row, apart, token);
    token += 2;
  }
  if (token < end) tile<Machine, Bits, Rows, 1>(p, row, apart, token);
}

// Rows in as many streams of weights as a tile has rows.
template <class Machine, int Bits, int Rows, class Weight>
int64_t streams(const Problem<Weight, typename Machine::Input>& p, int64_t begin, int64_t end,
                int64_t token, int64_t token_end) {
  const int64_t apart = (end - begin) / Rows;
  for (int64_t row = begin; row < begin + apart; ++row)
    rows_by_tokens<Machine, Bits, Rows>(p, row, apart, token, token_end);
  return begin + Rows * apart;
}

template <class Machine, int Bits, class Weight>
void all_streams(const Problem<Weight, typename Machine::Input>& p, int64_t begin, int64_t end,
                 int64_t token, int64_t token_end) {
#ifdef PERMLLM_PAIRS
  if constexpr (Bits == 2)
    begin = streams<Pairs, Bits, 2>(p, begin, end, token, token_end);
#endif
  streams<Machine, Bits, 1>(p, begin, end, token, token_end);
}

// Inputs of so many bytes stay in the first cache beside the weights that pass through it, and
// weights of so many in the second.
constexpr int64_t kInputBytes = 20 << 10, kWeightBytes = 128 << 10;

// One row at a time is one stream of weights. Tokens come in parts whose inputs stay in the first
// cache, each of which meets rows that stay in the second. Where there is no room for four of
// several tokens, four rows share inputs that are read from further away.
template <class Machine, int Bits, class Weight>
void register_rows(const Problem<Weight, typename Machine::Input>& p, int64_t begin, int64_t end) {
  int64_t fitting = kInputBytes / std::max<int64_t>(1, p.c_in * int64_t{sizeof(*p.x)});
#ifdef PERMLLM_PAIRS
  if constexpr (Bits == 2) fitting = std::max<int64_t>(4, fitting);
#endif
  if (p.tokens > 1 && fitting < std::min<int64_t>(4, p.tokens)) {
    for (; begin + 4 <= end; begin += 4)
      rows_by_tokens<Machine, Bits, 4>(p, begin, 1, 0, p.tokens);
    for (; begin < end; ++begin) rows_by_tokens<Machine, Bits, 1>(p, begin, 1, 0, p.tokens);
    return;
  }
  const int64_t part = p.tokens <= std::max<int64_t>(1, fitting) ? p.tokens : fitting / 4 * 4;
  const int64_t row_bytes = p.weight.row_bytes + p.row_bytes;
  const int64_t rows = std::max<int64_t>(1, kWeightBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t first = begin; first < end; first += rows)
    for (int64_t token = 0; token < p.tokens; token += part)
      all_streams<Machine, Bits>(p, first, std::min(first + rows, end), token,
                                 std::min(token + part, p.tokens));
}
#endif

}  // namespace permllm
