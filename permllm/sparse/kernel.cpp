// Products with packed N:M weights on the CPU.
//
// Decoding reads every weight once for a handful of tokens, so that memory sets the pace and
// half the bytes are half the time, if the places of the kept weights cost less than reading
// them. For M = 2N (1:2, 2:4, 4:8, 8:16) a register of kept weights meets exactly two registers
// of inputs, and one permutation of the two fetches the inputs that it needs. Other patterns
// and machines without AVX2 take a plain loop, which permllm does not choose by itself.
//
// The format is that of permllm/core/packing.py. That the places are ascending below M is
// checked there, once, rather than here for every token.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "coded.h"
#include "many_tokens.h"
#include "places.h"
#include "registers.h"

namespace permllm {
namespace {

using at::Tensor;

// --- any N:M: the places of a row once, then a loop for every token ---------------------

template <typename Value, typename Input>
void plain_rows(const Problem<Value, Input>& p, int64_t n, int64_t m, int64_t begin, int64_t end) {
  std::vector<int32_t> places(p.kept);
  const int bits = index_bits(m);
  for (int64_t row = begin; row < end; ++row) {
    for_places(p.indices + row * p.row_bytes, p.row_bytes, 0, p.kept, n, m, bits,
               [&](int64_t k, int64_t place) { places[k] = static_cast<int32_t>(place); });
    const Value* values = p.values + row * p.kept;
    for (int64_t token = 0; token < p.tokens; ++token) {
      const Input* x = p.x + token * p.c_in;
      float parts[4] = {0, 0, 0, 0};
      int64_t k = 0;
      for (; k + 4 <= p.kept; k += 4)
        for (int i = 0; i < 4; ++i)
          parts[i] += static_cast<float>(values[k + i]) * static_cast<float>(x[places[k + i]]);
      for (; k < p.kept; ++k)
        parts[0] += static_cast<float>(values[k]) * static_cast<float>(x[places[k]]);
      const float sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
      p.y[token * p.c_out + row] = static_cast<Value>(sum + (p.bias ? p.bias[row] : 0.0f));
    }
  }
}

// --- M = 2N: registers ------------------------------------------------------------------

#ifdef PERMLLM_REGISTERS

// Rows x Tokens outputs at once: places are read once for all tokens, inputs for all rows.
template <class Machine, int Bits, int Rows, int Tokens>
void tile(const Problem<typename Machine::Value, typename Machine::Input>& p, int64_t row,
          int64_t token) {
  constexpr int lanes = Machine::lanes;
  const auto* values = p.values + row * p.kept;
  const uint8_t* indices = p.indices + row * p.row_bytes;
  const auto* x = p.x + token * p.c_in;
  typename Machine::Sum sums[Rows][Tokens];
  for (auto& of_row : sums)
    for (auto& sum : of_row) sum = Machine::zero();
  const int64_t whole = p.kept / lanes * lanes;
  for (int64_t k = 0; k < whole; k += lanes) {
    typename Machine::Inputs inputs[Tokens];
    for (int t = 0; t < Tokens; ++t) inputs[t] = Machine::inputs(x + t * p.c_in + 2 * k);
    for (int r = 0; r < Rows; ++r) {
      const auto places = Machine::template places<Bits>(indices + r * p.row_bytes + k / 8 * Bits);
      for (int t = 0; t < Tokens; ++t)
        sums[r][t] = Machine::add(sums[r][t], values + r * p.kept + k, places, inputs[t]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int t = 0; t < Tokens; ++t) {
      float sum = Machine::total(sums[r][t]);
      for_places(indices + r * p.row_bytes, p.row_bytes, whole, p.kept, 1 << (Bits - 1), 1 << Bits,
                 Bits, [&](int64_t k, int64_t place) {
                   sum += static_cast<float>(values[r * p.kept + k]) *
                          static_cast<float>(x[t * p.c_in + place]);
                 });
      if (p.bias) sum += p.bias[row + r];
      p.y[(token + t) * p.c_out + row + r] = static_cast<typename Machine::Value>(sum);
    }
  }
}

template <class Machine, int Bits, int Rows>
void rows_by_tokens(const Problem<typename Machine::Value, typename Machine::Input>& p,
                    int64_t row, int64_t token, int64_t end) {
  for (; token + 4 <= end; token += 4) tile<Machine, Bits, Rows, 4>(p, row, token);
  if (token + 2 <= end) {
    tile<Machine, Bits, Rows, 2>(p, row, token);
    token += 2;
  }
  if (token < end) tile<Machine, Bits, Rows, 1>(p, row, token);
}

#ifdef PERMLLM_PAIRS
// As tile for two rows of 2:4 that are so far apart, with the same bits; each row goes on in a
// stream of its own.
template <int Tokens, typename Value>
void pair(const Problem<Value, float>& p, int64_t row, int64_t apart, int64_t token) {
  constexpr int lanes = Floats<float>::lanes;
  const int64_t rows[] = {row, row + apart};
  const Value* values[2];
  const uint8_t* indices[2];
  for (int r = 0; r < 2; ++r) {
    values[r] = p.values + rows[r] * p.kept;
    indices[r] = p.indices + rows[r] * p.row_bytes;
  }
  const float* x = p.x + token * p.c_in;
  Pairs::Two sums[Tokens];
  for (auto& sum : sums) sum = Pairs::zero();
  const int64_t whole = p.kept / lanes * lanes;
  for (int64_t k = 0; k < whole; k += lanes) {
    const auto places = Pairs::places(indices[0] + k / 4, indices[1] + k / 4);
    const auto both = Pairs::values(values[0] + k, values[1] + k);
    for (int t = 0; t < Tokens; ++t) Pairs::fuse(sums[t], both, places, x + t * p.c_in + 2 * k);
  }
  for (int t = 0; t < Tokens; ++t) {
    const auto of_rows = Pairs::apart(sums[t]);
    for (int r = 0; r < 2; ++r) {
      float sum = Floats<float>::total(of_rows[r]);
      for_places(indices[r], p.row_bytes, whole, p.kept, 2, 4, 2, [&](int64_t k, int64_t place) {
        sum += static_cast<float>(values[r][k]) * x[t * p.c_in + place];
      });
      if (p.bias) sum += p.bias[rows[r]];
      p.y[(token + t) * p.c_out + rows[r]] = static_cast<Value>(sum);
    }
  }
}

template <typename Value>
void pairs_by_tokens(const Problem<Value, float>& p, int64_t row, int64_t apart, int64_t token,
                     int64_t end) {
  for (; token + 4 <= end; token += 4) pair<4>(p, row, apart, token);
  if (token + 2 <= end) {
    pair<2>(p, row, apart, token);
    token += 2;
  }
  if (token < end) pair<1>(p, row, apart, token);
}
#endif

// Rows that share no inputs.
template <class Machine, int Bits>
void single_rows(const Problem<typename Machine::Value, typename Machine::Input>& p, int64_t begin,
                 int64_t end, int64_t token, int64_t token_end) {
#ifdef PERMLLM_PAIRS
  if constexpr (Bits == 2) {
    const int64_t apart = (end - begin) / 2;
    for (int64_t row = begin; row < begin + apart; ++row)
      pairs_by_tokens(p, row, apart, token, token_end);
    begin += 2 * apart;
  }
#endif
  for (; begin < end; ++begin) rows_by_tokens<Machine, Bits, 1>(p, begin, token, token_end);
}

// Inputs of so many bytes stay in the first cache beside the weights that pass through it, and
// weights of so many in the second.
constexpr int64_t kInputBytes = 20 << 10, kWeightBytes = 128 << 10;

// One row at a time is one stream of weights. Tokens come in parts whose inputs stay in the first
// cache, each of which meets rows that stay in the second. Where there is no room for four tokens,
// four rows share inputs that are read from further away.
template <class Machine, int Bits>
void register_rows(const Problem<typename Machine::Value, typename Machine::Input>& p,
                   int64_t begin, int64_t end) {
  int64_t fitting = kInputBytes / std::max<int64_t>(1, p.c_in * int64_t{sizeof(*p.x)});
#ifdef PERMLLM_PAIRS
  if constexpr (Bits == 2) fitting = std::max<int64_t>(4, fitting);
#endif
  if (fitting < std::min<int64_t>(4, p.tokens)) {
    for (; begin + 4 <= end; begin += 4) rows_by_tokens<Machine, Bits, 4>(p, begin, 0, p.tokens);
    for (; begin < end; ++begin) rows_by_tokens<Machine, Bits, 1>(p, begin, 0, p.tokens);
    return;
  }
  const int64_t part = p.tokens <= fitting ? p.tokens : fitting / 4 * 4;
  const int64_t row_bytes = p.kept * int64_t{sizeof(*p.values)} + p.row_bytes;
  const int64_t rows = std::max<int64_t>(1, kWeightBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t first = begin; first < end; first += rows)
    for (int64_t token = 0; token < p.tokens; token += part)
      single_rows<Machine, Bits>(p, first, std::min(first + rows, end), token,
                                 std::min(token + part, p.tokens));
}
#endif

// A thread is worth waking for this many multiplications.
constexpr int64_t kGrain = 32768;

template <class Machine, typename Value, typename Input>
void multiply(const Problem<Value, Input>& p, int64_t n, int64_t m) {
  const int64_t grain = std::max<int64_t>(4, kGrain / std::max<int64_t>(1, p.kept * p.tokens));
  at::parallel_for(0, p.c_out, grain, [&](int64_t begin, int64_t end) {
#ifdef PERMLLM_REGISTERS
    if (m == 2 * n && n == 1) return register_rows<Machine, 1>(p, begin, end);
    if (m == 2 * n && n == 2) return register_rows<Machine, 2>(p, begin, end);
    if (m == 2 * n && n == 4) return register_rows<Machine, 3>(p, begin, end);
    if (m == 2 * n && n == 8) return register_rows<Machine, 4>(p, begin, end);
#endif
    plain_rows(p, n, m, begin, end);
  });
}

void check(const Tensor& values, const Tensor& indices, int64_t n, int64_t m, int64_t channels) {
  TORCH_CHECK(1 <= n && n < m && m <= 256 && channels % m == 0, "not a pattern for the kernel");
  const int64_t kept = channels / m * n;
  const int64_t row_bytes = (kept * index_bits(m) + 7) / 8;
  TORCH_CHECK(values.dim() == 2 && indices.dim() == 2 && values.size(1) == kept &&
                  indices.size(1) == row_bytes && indices.size(0) == values.size(0) &&
                  indices.scalar_type() == at::kByte && values.is_contiguous() &&
                  indices.is_contiguous(),
              "values and indices are not packed for these channels");
}

// What a product has beside the weight: the rows of x, the bias in float32 and room for y.
struct Operands {
  Tensor rows, bias, y;

  Operands(const Tensor& x, const Tensor& values, const Tensor& indices,
           const std::optional<Tensor>& added, int64_t n, int64_t m) {
    TORCH_CHECK(x.dim() >= 1 && x.scalar_type() == values.scalar_type(),
                "x does not fit the values");
    TORCH_CHECK(values.scalar_type() == at::kFloat || values.scalar_type() == at::kBFloat16,
                "values are neither float32 nor bfloat16");
    check(values, indices, n, m, x.size(-1));
    rows = x.contiguous();
    if (added) bias = added->to(at::kFloat).contiguous();
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = values.size(0);
    y = at::empty(sizes, values.options());
  }

  template <typename Value, typename Input>
  Problem<Value, Input> problem(const Tensor& values, const Tensor& indices) const {
    const int64_t tokens = y.numel() / std::max<int64_t>(1, values.size(0));
    return {values.const_data_ptr<Value>(),
            indices.const_data_ptr<uint8_t>(),
            rows.const_data_ptr<Input>(),
            bias.defined() ? bias.const_data_ptr<float>() : nullptr,
            y.mutable_data_ptr<Value>(),
            tokens,
            rows.size(-1),
            values.size(0),
            values.size(1),
            indices.size(1)};
  }
};

// x [..., c_in] times the packed weight, summed in float32 -> [..., c_out].
Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& indices,
                 const std::optional<Tensor>& bias, int64_t n, int64_t m) {
  Operands operands(x, values, indices, bias, n, m);
  if (values.scalar_type() == at::kFloat) {
    multiply<Floats<float>>(operands.problem<float, float>(values, indices), n, m);
  } else {
#ifdef PERMLLM_BFLOAT16
    multiply<Halves>(operands.problem<BFloat16, BFloat16>(values, indices), n, m);
#else
    operands.rows = operands.rows.to(at::kFloat);
    multiply<Floats<BFloat16>>(operands.problem<BFloat16, float>(values, indices), n, m);
#endif
  }
  return operands.y;
}

// The same by registers of tokens; for M = 2N.
Tensor nm_linear_many(const Tensor& x, const Tensor& values, const Tensor& indices,
                      const std::optional<Tensor>& bias, int64_t n, int64_t m) {
  TORCH_CHECK(m == 2 * n && m <= 16 && (m & (m - 1)) == 0, "not a pattern for many tokens");
  const Operands operands(x, values, indices, bias, n, m);
  if (values.scalar_type() == at::kFloat)
    many_tokens(operands.problem<float, float>(values, indices), n);
  else
    many_tokens(operands.problem<BFloat16, BFloat16>(values, indices), n);
  return operands.y;
}

// x [..., c_in] times the packed weight of codes and scales [c_out, parts], of which each is for
// `part` values of a row, summed in float32 -> [..., c_out] in the type of x.
Tensor nm_coded_linear(const Tensor& x, const Tensor& codes, const Tensor& indices,
                       const Tensor& scales, const std::optional<Tensor>& bias, int64_t n,
                       int64_t m, int64_t bits, int64_t part) {
  const int64_t channels = x.size(-1);
  TORCH_CHECK(1 <= n && n < m && m <= 256 && channels % m == 0, "not a pattern for the kernel");
  const int64_t kept = channels / m * n, c_out = codes.size(0);
  const int64_t code_bytes = (kept * bits + 7) / 8, row_bytes = (kept * index_bits(m) + 7) / 8;
  TORCH_CHECK(bits == 8 || bits == 4, "codes of 8 or 4 bits");
  TORCH_CHECK(codes.dim() == 2 && codes.size(1) == code_bytes && codes.element_size() == 1 &&
                  indices.dim() == 2 && indices.size(0) == c_out && indices.size(1) == row_bytes &&
                  indices.scalar_type() == at::kByte && codes.is_contiguous() &&
                  indices.is_contiguous(),
              "codes and indices are not packed for these channels");
  TORCH_CHECK(part >= 1 && scales.dim() == 2 && scales.size(0) == c_out &&
                  scales.size(1) == (kept + part - 1) / part,
              "scales are not those of the codes");
  const Tensor rows = x.to(at::kFloat).contiguous();
  const Tensor sizes = scales.to(at::kFloat).contiguous();
  const Tensor added = bias ? bias->to(at::kFloat).contiguous() : Tensor();
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = c_out;
  const Tensor y = at::empty(shape, rows.options());
  const CodedProblem p{static_cast<const uint8_t*>(codes.const_data_ptr()),
                       indices.const_data_ptr<uint8_t>(),
                       sizes.const_data_ptr<float>(),
                       rows.const_data_ptr<float>(),
                       bias ? added.const_data_ptr<float>() : nullptr,
                       y.mutable_data_ptr<float>(),
                       y.numel() / std::max<int64_t>(1, c_out),
                       channels,
                       c_out,
                       kept,
                       code_bytes,
                       row_bytes,
                       sizes.size(1),
                       part};
  const int64_t grain = std::max<int64_t>(4, kGrain / std::max<int64_t>(1, kept * p.tokens));
  at::parallel_for(0, c_out, grain, [&](int64_t begin, int64_t end) {
    if (bits == 8) coded_rows<8>(p, n, m, begin, end);
    else coded_rows<4>(p, n, m, begin, end);
  });
  return y.to(x.scalar_type());
}

// --- unpacking --------------------------------------------------------------------------

#ifdef PERMLLM_EXPAND
// Returns how many values of the row are done, a multiple of 16.
template <int Bits, typename Word>
int64_t expand_row(const Word* in, const uint8_t* codes, int64_t kept, Word* out) {
  int64_t k = 0;
  for (; k + 16 <= kept; k += 16) expand(in + k, kept_of_32<Bits>(codes + k / 8 * Bits), out + 2 * k);
  return k;
}
#endif

template <typename Word>
void unpack_row(const Word* in, const uint8_t* codes, int64_t kept, int64_t row_bytes, int64_t n,
                int64_t m, Word* out, int64_t channels) {
  int64_t done = 0;
#ifdef PERMLLM_EXPAND
  if (m == 2 * n && n == 1) done = expand_row<1>(in, codes, kept, out);
  if (m == 2 * n && n == 2) done = expand_row<2>(in, codes, kept, out);
  if (m == 2 * n && n == 4) done = expand_row<3>(in, codes, kept, out);
  if (m == 2 * n && n == 8) done = expand_row<4>(in, codes, kept, out);
#endif
  const int64_t written = done / n * m;
  std::memset(out + written, 0, (channels - written) * sizeof(Word));
  for_places(codes, row_bytes, done, kept, n, m, index_bits(m),
             [&](int64_t k, int64_t place) { out[place] = in[k]; });
}

template <typename Word>
void unpack_rows(const Tensor& values, const Tensor& indices, const Tensor& weight, int64_t n,
                 int64_t m) {
  const int64_t kept = values.size(1), row_bytes = indices.size(1), channels = weight.size(1);
  const auto* stored = static_cast<const Word*>(values.const_data_ptr());
  const auto* codes = indices.const_data_ptr<uint8_t>();
  auto* dense = static_cast<Word*>(weight.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, channels));
  at::parallel_for(0, values.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      unpack_row(stored + row * kept, codes + row * row_bytes, kept, row_bytes, n, m,
                 dense + row * channels, channels);
  });
}

// The dense weight [c_out, channels], of float32 or of any type of two bytes.
Tensor nm_unpack(const Tensor& values, const Tensor& indices, int64_t n, int64_t m,
                 int64_t channels) {
  check(values, indices, n, m, channels);
  const Tensor weight = at::empty({values.size(0), channels}, values.options());
  TORCH_CHECK(values.element_size() == 2 || values.element_size() == 4, "values of 2 or 4 bytes");
  if (values.element_size() == 2) unpack_rows<uint16_t>(values, indices, weight, n, m);
  else unpack_rows<uint32_t>(values, indices, weight, n, m);
  return weight;
}

// What the kernel was built for.
std::string instructions() {
#if defined(PERMLLM_BFLOAT16)
  return "AVX-512 with bfloat16";
#elif defined(PERMLLM_REGISTERS) && defined(__AVX512F__) && defined(__AVX512BW__)
  return "AVX-512";
#elif defined(PERMLLM_REGISTERS)
  return "AVX2";
#else
  return "plain";
#endif
}

// The library is called what the build says, so that builds for several machines can be tested.
#define PERMLLM_LIBRARY(name) TORCH_LIBRARY(name, library)

PERMLLM_LIBRARY(TORCH_EXTENSION_NAME) {
  library.def("nm_linear(Tensor x, Tensor values, Tensor indices, Tensor? bias, int n, int m) -> Tensor");
  library.def("nm_linear_many(Tensor x, Tensor values, Tensor indices, Tensor? bias, int n, int m) -> Tensor");
  library.def(
      "nm_coded_linear(Tensor x, Tensor codes, Tensor indices, Tensor scales, Tensor? bias, int n, "
      "int m, int bits, int part) -> Tensor");
  library.def("nm_unpack(Tensor values, Tensor indices, int n, int m, int channels) -> Tensor");
  library.def("instructions() -> str", &instructions);
  library.impl("nm_linear", c10::DispatchKey::CPU, &nm_linear);
  library.impl("nm_linear_many", c10::DispatchKey::CPU, &nm_linear_many);
  library.impl("nm_coded_linear", c10::DispatchKey::CPU, &nm_coded_linear);
  library.impl("nm_unpack", c10::DispatchKey::CPU, &nm_unpack);
}

}  // namespace
}  // namespace permllm
