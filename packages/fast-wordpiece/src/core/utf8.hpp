// UTF-8 in and out. Decoding trusts well-formed input and stays in bounds on any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace chapbook {

inline constexpr uint32_t kReplacement = 0xFFFD;

struct Decoded {
  uint32_t cp;
  uint32_t bytes;
};

// Returns the code point at `p` and how many bytes it takes. A truncated or impossible sequence
// is U+FFFD over one byte.
inline Decoded decode(const uint8_t* p, const uint8_t* end) {
  const uint32_t lead = *p;
  const size_t left = static_cast<size_t>(end - p);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) {
    if (lead < 0xC2 || left < 2) return {kReplacement, 1};
    return {(lead & 0x1F) << 6 | (p[1] & 0x3Fu), 2};
  }
  if (lead < 0xF0) {
    if (left < 3) return {kReplacement, 1};
    return {(lead & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu), 3};
  }
  if (left < 4 || lead > 0xF4) return {kReplacement, 1};
  const uint32_t cp = (lead & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  return {cp <= 0x10FFFF ? cp : kReplacement, 4};
}

inline void encode_utf8(uint32_t cp, std::string& out) {
  if (cp < 0x80) {
    out.push_back(static_cast<char>(cp));
  } else if (cp < 0x800) {
    out.push_back(static_cast<char>(0xC0 | cp >> 6));
    out.push_back(static_cast<char>(0x80 | (cp & 0x3F)));
  } else if (cp < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | cp >> 12));
    out.push_back(static_cast<char>(0x80 | (cp >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (cp & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | cp >> 18));
    out.push_back(static_cast<char>(0x80 | (cp >> 12 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (cp >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (cp & 0x3F)));
  }
}

inline bool is_continuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Returns the number of code points in well-formed UTF-8.
inline size_t count_chars(const uint8_t* p, size_t n) {
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) count += !is_continuation(p[i]);
  return count;
}

// Returns the offset of the first byte that is not well-formed UTF-8 (Unicode table 3-7), or `n`.
inline size_t first_invalid(const uint8_t* p, size_t n) {
  size_t i = 0;
  while (i < n) {
    const uint8_t lead = p[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    size_t length;
    uint8_t low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return i;
    }
    if (n - i < length || p[i + 1] < low || p[i + 1] > high) return i;
    for (size_t k = 2; k < length; ++k) {
      if (!is_continuation(p[i + k])) return i;
    }
    i += length;
  }
  return n;
}

inline std::u32string to_utf32(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const auto* end = p + text.size();
  while (p < end) {
    const Decoded d = decode(p, end);
    out.push_back(d.cp);
    p += d.bytes;
  }
  return out;
}

}  // namespace chapbook
