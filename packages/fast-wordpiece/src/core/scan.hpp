// Finds the words of a text between ASCII white space and ASCII punctuation, 64 bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace chapbook {

inline constexpr size_t kBlock = 64;
inline constexpr size_t kTile = 4096;  // bytes scanned at a time; what it takes stays in the first cache

// A stretch is what lies between white space, or one character of punctuation.
//
// Reads `n` <= kTile bytes of `text`, writes them to `copy` with A-Z lowered where `lower`, and where
// their stretches start and end, in order. `copy`, `starts` and `ends` have room for n rounded up to
// kBlock, and kBlock more; `copy` is zero behind n. Nothing behind text + n is read. Returns how many
// stretches there are.
using Scan = size_t (*)(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends);

size_t scan_scalar(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends);
size_t scan_avx2(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends);
size_t scan_avx512(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends);

enum class Isa { kScalar, kAvx2, kAvx512 };

// Returns the best instruction set of this machine.
Isa best_isa();

// True where this machine can run the instruction set and this build holds it.
bool has_isa(Isa isa);

Scan scan_for(Isa isa);

// True for the characters between which a stretch lies.
constexpr bool is_punctuation(uint8_t c) {
  return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
}
constexpr bool is_blank(uint8_t c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
constexpr bool is_boundary(uint8_t c) { return is_blank(c) || is_punctuation(c); }

}  // namespace chapbook
