// The scan in AVX-512: 64 bytes a step, comparisons straight into masks.
#include "scan.hpp"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include <cstring>

namespace chapbook {
namespace {

struct Masks {
  uint64_t boundary, punctuation;
};

// One bit for each byte with low <= byte <= high, as unsigned.
inline uint64_t between(__m512i bytes, int low, int high) {
  const __m512i shifted = _mm512_sub_epi8(bytes, _mm512_set1_epi8(static_cast<char>(low)));
  return _mm512_cmple_epu8_mask(shifted, _mm512_set1_epi8(static_cast<char>(high - low)));
}

inline Masks masks_of(__m512i bytes, bool lower, uint8_t* copy) {
  const uint64_t upper = between(bytes, 'A', 'Z');
  const uint64_t word = upper | between(bytes, '0', '9') | between(bytes, 'a', 'z');
  // Printable ASCII that is no letter, digit or space is punctuation.
  const uint64_t printable = between(bytes, 0x21, 0x7E);
  const uint64_t punctuation = printable & ~word;
  const uint64_t space = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(' ')) | between(bytes, '\t', '\n') |
                         _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('\r'));
  const __m512i lowered = _mm512_mask_add_epi8(bytes, lower ? upper : 0, bytes, _mm512_set1_epi8(32));
  _mm512_storeu_si512(copy, lowered);
  return {space | punctuation, punctuation};
}

inline Masks masks_of(const uint8_t* text, bool lower, uint8_t* copy) {
  return masks_of(_mm512_loadu_si512(text), lower, copy);
}

inline Masks last_masks_of(const uint8_t* text, size_t n, bool lower, uint8_t* copy) {
  return masks_of(_mm512_maskz_loadu_epi8((1ull << n) - 1, text), lower, copy);
}

#include "scan_blocks.inc"

}  // namespace

size_t scan_avx512(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends) {
  return scan_blocks(text, n, lower, copy, starts, ends);
}

}  // namespace chapbook

#endif
