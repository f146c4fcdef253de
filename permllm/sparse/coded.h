// Products with packed N:M weights whose values are codes of 8 or 4 bits, with scales.
//
// As in kernel.cpp, but that a row's sum is made of parts: those of the values that share a
// scale are summed by themselves, and the scale is multiplied in once for each part. The codes
// are those of permllm/core/codes.py.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "places.h"
#include "registers.h"

namespace permllm {

// The weight as it is packed, x [tokens, c_in] in float32, y [tokens, c_out].
struct CodedProblem {
  const uint8_t* codes;
  const uint8_t* indices;
  const float* scales;  // [c_out, parts]
  const float* x;
  const float* bias;  // or null
  float* y;
  int64_t tokens, c_in, c_out, kept, code_bytes, row_bytes, parts, part;  // values of a part
};

template <int CodeBits>
inline float code_at(const uint8_t* row, int64_t k) {
  if constexpr (CodeBits == 8) return static_cast<float>(static_cast<int8_t>(row[k]));
  const int four = row[k / 2] >> (k % 2 * 4) & 15;
  return static_cast<float>((four ^ 8) - 8);
}

// --- any N:M: a row's values and places once, then a loop for every token ------------------

template <int CodeBits>
void plain_coded_rows(const CodedProblem& p, int64_t n, int64_t m, int64_t begin, int64_t end) {
  std::vector<int32_t> places(p.kept);
  std::vector<float> values(p.kept);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* codes = p.codes + row * p.code_bytes;
    for_places(p.indices + row * p.row_bytes, p.row_bytes, 0, p.kept, n, m, index_bits(m),
               [&](int64_t k, int64_t place) {
                 places[k] = static_cast<int32_t>(place);
                 values[k] = code_at<CodeBits>(codes, k) * p.scales[row * p.parts + k / p.part];
               });
    for (int64_t token = 0; token < p.tokens; ++token) {
      const float* x = p.x + token * p.c_in;
      float sum = 0;
      for (int64_t k = 0; k < p.kept; ++k) sum += values[k] * x[places[k]];
      p.y[token * p.c_out + row] = sum + (p.bias ? p.bias[row] : 0.0f);
    }
  }
}

// --- M = 2N, parts of whole registers -----------------------------------------------------

#ifdef PERMLLM_REGISTERS

template <int CodeBits, int Bits, int Tokens>
void coded_tile(const CodedProblem& p, int64_t row, int64_t token) {
  using Machine = Floats<float>;
  constexpr int lanes = Machine::lanes;
  const uint8_t* codes = p.codes + row * p.code_bytes;
  const uint8_t* indices = p.indices + row * p.row_bytes;
  const float* scales = p.scales + row * p.parts;
  const float* x = p.x + token * p.c_in;
  Machine::Sum sums[Tokens];
  for (auto& sum : sums) sum = Machine::zero();
  const int64_t whole = p.kept / lanes * lanes;
  for (int64_t first = 0, part = 0; first < whole; first += p.part, ++part) {
    Machine::Sum own[Tokens];
    for (auto& sum : own) sum = Machine::zero();
    const int64_t end = std::min(first + p.part, whole);
    for (int64_t k = first; k < end; k += lanes) {
      const auto places = Machine::template places<Bits>(indices + k / 8 * Bits);
      const auto values = Machine::template codes<CodeBits>(codes + k * CodeBits / 8);
      for (int t = 0; t < Tokens; ++t)
        own[t] = Machine::fused(own[t], values, places, Machine::inputs(x + t * p.c_in + 2 * k));
    }
    for (int t = 0; t < Tokens; ++t) sums[t] = Machine::scaled(sums[t], scales[part], own[t]);
  }
  for (int t = 0; t < Tokens; ++t) {
    float sum = Machine::total(sums[t]);
    for_places(indices, p.row_bytes, whole, p.kept, 1 << (Bits - 1), 1 << Bits, Bits,
               [&](int64_t k, int64_t place) {
                 sum += code_at<CodeBits>(codes, k) * scales[k / p.part] * x[t * p.c_in + place];
               });
    p.y[(token + t) * p.c_out + row] = sum + (p.bias ? p.bias[row] : 0.0f);
  }
}

#ifdef PERMLLM_PAIRS
// As coded_tile for two rows of 2:4 that are so far apart, with the same bits; each row goes on in
// a stream of its own.
template <int CodeBits, int Tokens>
void coded_pair(const CodedProblem& p, int64_t row, int64_t apart, int64_t token) {
  constexpr int lanes = Floats<float>::lanes;
  const int64_t rows[] = {row, row + apart};
  const uint8_t *codes[2], *indices[2];
  const float* scales[2];
  for (int r = 0; r < 2; ++r) {
    codes[r] = p.codes + rows[r] * p.code_bytes;
    indices[r] = p.indices + rows[r] * p.row_bytes;
    scales[r] = p.scales + rows[r] * p.parts;
  }
  const float* x = p.x + token * p.c_in;
  Pairs::Two sums[Tokens];
  for (auto& sum : sums) sum = Pairs::zero();
  const int64_t whole = p.kept / lanes * lanes;
  for (int64_t first = 0, part = 0; first < whole; first += p.part, ++part) {
    Pairs::Two own[Tokens];
    for (auto& sum : own) sum = Pairs::zero();
    const int64_t end = std::min(first + p.part, whole);
    for (int64_t k = first; k < end; k += lanes) {
      const int64_t at = k * CodeBits / 8;
      const auto places = Pairs::places(indices[0] + k / 4, indices[1] + k / 4);
      const auto values = Pairs::codes<CodeBits>(codes[0] + at, codes[1] + at);
      for (int t = 0; t < Tokens; ++t) Pairs::fuse(own[t], values, places, x + t * p.c_in + 2 * k);
    }
    for (int t = 0; t < Tokens; ++t)
      Pairs::scale(sums[t], scales[0][part], scales[1][part], own[t]);
  }
  for (int t = 0; t < Tokens; ++t) {
    const auto of_rows = Pairs::apart(sums[t]);
    for (int r = 0; r < 2; ++r) {
      float sum = Floats<float>::total(of_rows[r]);
      for_places(indices[r], p.row_bytes, whole, p.kept, 2, 4, 2, [&](int64_t k, int64_t place) {
        sum += code_at<CodeBits>(codes[r], k) * scales[r][k / p.part] * x[t * p.c_in + place];
      });
      p.y[(token + t) * p.c_out + rows[r]] = sum + (p.bias ? p.bias[rows[r]] : 0.0f);
    }
  }
}
#endif

// The rows for some tokens.
template <int CodeBits, int Bits, int Tokens>
void coded_tiles(const CodedProblem& p, int64_t begin, int64_t end, int64_t token) {
#ifdef PERMLLM_PAIRS
  if constexpr (Bits == 2) {
    const int64_t apart = (end - begin) / 2;
    for (int64_t row = begin; row < begin + apart; ++row)
      coded_pair<CodeBits, Tokens>(p, row, apart, token);
    begin += 2 * apart;
  }
#endif
  for (; begin < end; ++begin) coded_tile<CodeBits, Bits, Tokens>(p, begin, token);
}

// One row at a time is one stream of weights; see register_rows in kernel.cpp.
template <int CodeBits, int Bits>
void coded_register_rows(const CodedProblem& p, int64_t begin, int64_t end) {
  for (int64_t token = 0; token < p.tokens;) {
    const int64_t left = p.tokens - token;
    if (left >= 4) coded_tiles<CodeBits, Bits, 4>(p, begin, end, token);
    else if (left >= 2) coded_tiles<CodeBits, Bits, 2>(p, begin, end, token);
    else coded_tiles<CodeBits, Bits, 1>(p, begin, end, token);
    token += left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
}
#endif

template <int CodeBits>
void coded_rows(const CodedProblem& p, int64_t n, int64_t m, int64_t begin, int64_t end) {
#ifdef PERMLLM_REGISTERS
  // A part that ends within a register would need two scales there.
  if (m == 2 * n && (p.parts == 1 || p.part % Floats<float>::lanes == 0)) {
    if (n == 1) return coded_register_rows<CodeBits, 1>(p, begin, end);
    if (n == 2) return coded_register_rows<CodeBits, 2>(p, begin, end);
    if (n == 4) return coded_register_rows<CodeBits, 3>(p, begin, end);
    if (n == 8) return coded_register_rows<CodeBits, 4>(p, begin, end);
  }
#endif
  plain_coded_rows<CodeBits>(p, n, m, begin, end);
}

}  // namespace permllm
