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

// One row at a time is one stream of weights; see register_rows in kernel.cpp.
template <int CodeBits, int Bits>
void coded_register_rows(const CodedProblem& p, int64_t begin, int64_t end) {
  for (int64_t token = 0; token < p.tokens;) {
    const int64_t left = p.tokens - token;
    for (int64_t row = begin; row < end; ++row) {
      if (left >= 4) coded_tile<CodeBits, Bits, 4>(p, row, token);
      else if (left >= 2) coded_tile<CodeBits, Bits, 2>(p, row, token);
      else coded_tile<CodeBits, Bits, 1>(p, row, token);
    }
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
