// What a weight keeps: values as they are, or codes of 8 or 4 bits (permllm/core/codes.py).
//
// A row gives single values (`at`; without their scale `raw`), and whole registers of what is
// stored (`from`, which a machine knows how to load). Codes that share a scale are a part of a
// row: their products are summed by themselves, and the scale is multiplied in once for each part.

#pragma once

#include <cstdint>

namespace permllm {

constexpr int64_t kLineBytes = 64;

// The bytes of so many numbers, a multiple of eight (without a sign, it takes one shift).
inline uint64_t bytes_of(int64_t numbers, int bits) {
  return static_cast<uint64_t>(numbers) / 8 * bits;
}

template <typename Stored>
struct Values {
  using Output = Stored;
  static constexpr bool scaled = false;
  static constexpr int64_t line = kLineBytes / sizeof(Stored);  // values of a line of the cache
  struct Row {
    const Stored* values;

    float at(int64_t k) const { return static_cast<float>(values[k]); }
    const Stored* from(int64_t k) const { return values + k; }
    float scale(int64_t) const { return 1.0f; }
  };

  const Stored* values;
  int64_t row_bytes, part;  // bytes of a row, and all its values

  Row row(int64_t row) const { return {values + row * part}; }
};

// Codes from a byte on.
template <int CodeBits>
struct Code {
  const uint8_t* bytes;

  operator const void*() const { return bytes; }
};

template <int CodeBits, typename Scale>
struct Codes {
  using Output = Scale;
  static constexpr bool scaled = true;
  static constexpr int64_t line = kLineBytes * 8 / CodeBits;
  struct Row {
    const uint8_t* codes;
    const Scale* scales;
    int64_t part;

    float raw(int64_t k) const {
      if constexpr (CodeBits == 8) return static_cast<float>(static_cast<int8_t>(codes[k]));
      const int four = codes[k / 2] >> (k % 2 * 4) & 15;
      return static_cast<float>((four ^ 8) - 8);
    }
    float at(int64_t k) const { return scale(k / part) * raw(k); }
    Code<CodeBits> from(int64_t k) const { return {codes + bytes_of(k, CodeBits)}; }
    float scale(int64_t part) const { return static_cast<float>(scales[part]); }
  };

  const uint8_t* codes;
  int64_t row_bytes, part;  // bytes of a row, and values that share a scale
  const Scale* scales;      // [c_out, parts]
  int64_t parts;

  Row row(int64_t row) const { return {codes + row * row_bytes, scales + row * parts, part}; }
};

}  // namespace permllm
