// The scan in AVX2: 32 bytes a step, classes by comparisons.
#include "scan.hpp"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include <cstring>

namespace chapbook {
namespace {

struct Masks {
  uint64_t boundary, punctuation;
};

struct Half {
  uint32_t boundary, punctuation;
};

// True bytes (0xFF) where low <= byte <= high, as unsigned.
inline __m256i between(__m256i bytes, int low, int high) {
  const __m256i shifted = _mm256_sub_epi8(bytes, _mm256_set1_epi8(static_cast<char>(low)));
  const __m256i width = _mm256_set1_epi8(static_cast<char>(high - low));
  return _mm256_cmpeq_epi8(_mm256_min_epu8(shifted, width), shifted);
}

inline uint32_t bits(__m256i mask) { return static_cast<uint32_t>(_mm256_movemask_epi8(mask)); }

inline Half half_of(__m256i bytes, bool lower, uint8_t* copy) {
  const __m256i upper = between(bytes, 'A', 'Z');
  const __m256i digit = between(bytes, '0', '9');
  const __m256i small = between(bytes, 'a', 'z');
  // Printable ASCII that is no letter, digit or space is punctuation.
  const __m256i printable = between(bytes, 0x21, 0x7E);
  const __m256i word = _mm256_or_si256(_mm256_or_si256(upper, digit), small);
  const __m256i punctuation = _mm256_andnot_si256(word, printable);
  const __m256i space = _mm256_or_si256(
      _mm256_or_si256(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(' ')), between(bytes, '\t', '\n')),
      _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8('\r')));
  const uint32_t boundary = bits(_mm256_or_si256(space, punctuation));
  const __m256i lowered =
      lower ? _mm256_add_epi8(bytes, _mm256_and_si256(upper, _mm256_set1_epi8(32))) : bytes;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(copy), lowered);
  return {boundary, bits(punctuation)};
}

inline Masks masks_of(const uint8_t* text, bool lower, uint8_t* copy) {
  const Half a =
      half_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(text)), lower, copy);
  const Half b =
      half_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(text + 32)), lower, copy + 32);
  auto join = [](uint32_t low, uint32_t high) { return uint64_t{low} | uint64_t{high} << 32; };
  return {join(a.boundary, b.boundary), join(a.punctuation, b.punctuation)};
}

inline Masks last_masks_of(const uint8_t* text, size_t n, bool lower, uint8_t* copy) {
  uint8_t block[kBlock] = {};
  std::memcpy(block, text, n);
  return masks_of(block, lower, copy);
}

#include "scan_blocks.inc"

}  // namespace

size_t scan_avx2(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends) {
  return scan_blocks(text, n, lower, copy, starts, ends);
}

}  // namespace chapbook

#endif
