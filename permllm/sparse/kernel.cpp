// Products with packed N:M weights on the CPU.
//
// A few tokens take each row by registers (rows.h), more take registers of tokens (many_tokens.h).
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
#include <type_traits>
#include <vector>

#include "many_tokens.h"
#include "places.h"
#include "registers.h"
#include "rows.h"
#include "weights.h"

namespace permllm {
namespace {

using at::Tensor;

// A thread is worth waking for this many multiplications.
constexpr int64_t kGrain = 32768;

template <class Machine, class Weight, typename Input>
void multiply(const Problem<Weight, Input>& p, int64_t n, int64_t m) {
  const int64_t grain = std::max<int64_t>(4, kGrain / std::max<int64_t>(1, p.kept * p.tokens));
  at::parallel_for(0, p.c_out, grain, [&](int64_t begin, int64_t end) {
#ifdef PERMLLM_REGISTERS
    // A part that ends within a register would need two scales there.
    if (m == 2 * n && (p.weight.part >= p.kept || p.weight.part % Machine::lanes == 0)) {
      if (n == 1) return register_rows<Machine, 1>(p, begin, end);
      if (n == 2) return register_rows<Machine, 2>(p, begin, end);
      if (n == 4) return register_rows<Machine, 3>(p, begin, end);
      if (n == 8) return register_rows<Machine, 4>(p, begin, end);
    }
#endif
    plain_rows(p, n, m, begin, end);
  });
}

// How many values a row keeps.
int64_t check_pattern(int64_t n, int64_t m, int64_t channels) {
  TORCH_CHECK(1 <= n && n < m && m <= 256 && channels % m == 0, "not a pattern for the kernel");
  return channels / m * n;
}

void check_indices(const Tensor& indices, int64_t c_out, int64_t kept, int64_t m) {
  TORCH_CHECK(indices.dim() == 2 && indices.size(0) == c_out &&
                  indices.size(1) == (kept * index_bits(m) + 7) / 8 &&
                  indices.scalar_type() == at::kByte && indices.is_contiguous(),
              "indices are not packed for these channels");
}

void check(const Tensor& values, const Tensor& indices, int64_t n, int64_t m, int64_t channels) {
  const int64_t kept = check_pattern(n, m, channels);
  TORCH_CHECK(values.dim() == 2 && values.size(1) == kept && values.is_contiguous(),
              "values are not packed for these channels");
  check_indices(indices, values.size(0), kept, m);
}

void check_fit(const Tensor& x, const Tensor& values, const Tensor& indices, int64_t n, int64_t m) {
  TORCH_CHECK(x.dim() >= 1 && x.scalar_type() == values.scalar_type(),
              "x does not fit the values");
  check(values, indices, n, m, x.size(-1));
}

// What a product has beside the weight: the rows of x, the bias in float32 and room for y.
struct Operands {
  Tensor rows, indices, bias, y;

  Operands(const Tensor& x, const Tensor& indices, const std::optional<Tensor>& added)
      : rows(x.contiguous()), indices(indices) {
    TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
                "x is neither float32 nor bfloat16");
    if (added) bias = added->to(at::kFloat).contiguous();
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = indices.size(0);
    y = at::empty(sizes, x.options());
  }

  template <typename Input, class Weight>
  Problem<Weight, Input> problem(const Weight& weight, int64_t kept) const {
    const int64_t c_out = indices.size(0);
    return {weight,
            indices.const_data_ptr<uint8_t>(),
            rows.const_data_ptr<Input>(),
            bias.defined() ? bias.const_data_ptr<float>() : nullptr,
            y.mutable_data_ptr<typename Weight::Output>(),
            y.numel() / std::max<int64_t>(1, c_out),
            rows.size(-1),
            c_out,
            kept,
            indices.size(1)};
  }

  // y in the type of `weight`, by what this machine has for that.
  template <class Weight>
  void multiply_by(const Weight& weight, int64_t kept, int64_t n, int64_t m) {
    if constexpr (std::is_same_v<typename Weight::Output, float>) {
      multiply<Floats>(problem<float>(weight, kept), n, m);
    } else {
#ifdef PERMLLM_BFLOAT16
      if (weight.part >= kept || weight.part % Halves::lanes == 0)
        return multiply<Halves>(problem<BFloat16>(weight, kept), n, m);
#endif
      rows = rows.to(at::kFloat);
      multiply<Floats>(problem<float>(weight, kept), n, m);
    }
  }
};

template <typename Stored>
Values<Stored> values_of(const Tensor& values) {
  return {values.const_data_ptr<Stored>(), values.size(1) * int64_t{sizeof(Stored)},
          values.size(1)};
}

// x [..., c_in] times the packed weight, summed in float32 -> [..., c_out].
Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& indices,
                 const std::optional<Tensor>& bias, int64_t n, int64_t m) {
  check_fit(x, values, indices, n, m);
  Operands operands(x, indices, bias);
  if (values.scalar_type() == at::kFloat)
    operands.multiply_by(values_of<float>(values), values.size(1), n, m);
  else
    operands.multiply_by(values_of<BFloat16>(values), values.size(1), n, m);
  return operands.y;
}

// The same by registers of tokens; for M = 2N.
Tensor nm_linear_many(const Tensor& x, const Tensor& values, const Tensor& indices,
                      const std::optional<Tensor>& bias, int64_t n, int64_t m) {
  TORCH_CHECK(m == 2 * n && m <= 16 && (m & (m - 1)) == 0, "not a pattern for many tokens");
  check_fit(x, values, indices, n, m);
  const Operands operands(x, indices, bias);
  if (values.scalar_type() == at::kFloat)
    many_tokens(operands.problem<float>(values_of<float>(values), values.size(1)), n);
  else
    many_tokens(operands.problem<BFloat16>(values_of<BFloat16>(values), values.size(1)), n);
  return operands.y;
}

void check_codes(const Tensor& codes, const Tensor& scales, int64_t kept, int64_t bits,
                 int64_t part) {
  TORCH_CHECK(bits == 8 || bits == 4, "codes of 8 or 4 bits");
  TORCH_CHECK(codes.dim() == 2 && codes.size(1) == (kept * bits + 7) / 8 &&
                  codes.element_size() == 1 && codes.is_contiguous(),
              "codes are not packed for these channels");
  TORCH_CHECK(part >= 1 && scales.dim() == 2 && scales.size(0) == codes.size(0) &&
                  scales.size(1) == (kept + part - 1) / part && scales.is_contiguous() &&
                  (scales.scalar_type() == at::kFloat || scales.scalar_type() == at::kBFloat16),
              "scales are not those of the codes");
}

// Calls use(weight) with codes and scales in their types.
template <class Use>
void with_codes(const Tensor& codes, const Tensor& scales, int64_t bits, int64_t part,
                const Use& use) {
  const auto* bytes = static_cast<const uint8_t*>(codes.const_data_ptr());
  const auto of_scales = [&](const auto* sizes) {
    using Scale = std::remove_cv_t<std::remove_pointer_t<decltype(sizes)>>;
    const int64_t row_bytes = codes.size(1), parts = scales.size(1);
    if (bits == 8) use(Codes<8, Scale>{bytes, row_bytes, part, sizes, parts});
    else use(Codes<4, Scale>{bytes, row_bytes, part, sizes, parts});
  };
  if (scales.scalar_type() == at::kFloat) of_scales(scales.const_data_ptr<float>());
  else of_scales(scales.const_data_ptr<BFloat16>());
}

// x [..., c_in] times the packed weight of codes and scales [c_out, parts], of which each is for
// `part` values of a row, summed in float32 -> [..., c_out].
Tensor nm_coded_linear(const Tensor& x, const Tensor& codes, const Tensor& indices,
                       const Tensor& scales, const std::optional<Tensor>& bias, int64_t n,
                       int64_t m, int64_t bits, int64_t part) {
  const int64_t channels = x.size(-1), kept = check_pattern(n, m, channels);
  check_codes(codes, scales, kept, bits, part);
  check_indices(indices, codes.size(0), kept, m);
  TORCH_CHECK(x.scalar_type() == scales.scalar_type(), "x does not fit the scales");
  Operands operands(x, indices, bias);
  with_codes(codes, scales, bits, part,
             [&](const auto& weight) { operands.multiply_by(weight, kept, n, m); });
  return operands.y;
}

// The values [c_out, kept] of codes, in the type of the scales.
Tensor nm_decode(const Tensor& codes, const Tensor& scales, int64_t kept, int64_t bits,
                 int64_t part) {
  check_codes(codes, scales, kept, bits, part);
  const Tensor values = at::empty({codes.size(0), kept}, scales.options());
  with_codes(codes, scales, bits, part, [&](const auto& weight) {
    using Output = typename std::decay_t<decltype(weight)>::Output;
    auto* out = values.mutable_data_ptr<Output>();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, kept));
    at::parallel_for(0, codes.size(0), grain, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) decode_row(weight.row(begin), kept, out + begin * kept);
    });
  });
  return values;
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
  library.def("nm_decode(Tensor codes, Tensor scales, int kept, int bits, int part) -> Tensor");
  library.def("nm_unpack(Tensor values, Tensor indices, int n, int m, int channels) -> Tensor");
  library.def("instructions() -> str", &instructions);
  library.impl("nm_linear", c10::DispatchKey::CPU, &nm_linear);
  library.impl("nm_linear_many", c10::DispatchKey::CPU, &nm_linear_many);
  library.impl("nm_coded_linear", c10::DispatchKey::CPU, &nm_coded_linear);
  library.impl("nm_decode", c10::DispatchKey::CPU, &nm_decode);
  library.impl("nm_unpack", c10::DispatchKey::CPU, &nm_unpack);
}

}  // namespace
}  // namespace permllm
