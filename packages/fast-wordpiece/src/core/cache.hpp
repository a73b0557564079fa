// A bounded cache from the bytes of a stretch of text, as they stand, to its ids.
//
// Two tables. Most such stretches have up to 15 bytes and 3 ids: the two slots that share a place lie
// in one cache line and are compared at once. Others, up to 32 bytes and 7 ids, have a line each. What
// is new displaces the older of two. The cache is a pure function of the vocabulary, so its size
// changes speed and nothing else.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FWP_SSE2 1
#endif

namespace chapbook {

static_assert(std::endian::native == std::endian::little, "keys are read as little-endian numbers");

// Ones and then zeros: 16 or 32 bytes from kWindow + 32 - n on keep n bytes of what they are applied to.
alignas(64) inline constexpr uint8_t kWindow[64] = {
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};

// A stretch of up to 15 bytes and its length in one number of 128 bits. A longer one has in the place
// of the length what no slot holds.
struct alignas(16) ShortKey {
  static constexpr uint32_t kMax = 15;
  uint64_t words[2];

  ShortKey() = default;
  // 16 bytes from `text` on must be readable.
  ShortKey(const uint8_t* text, uint32_t length) {
    const uint64_t kept = length < kMax + 1 ? length : kMax + 1;
    uint64_t mask[2];
    std::memcpy(words, text, 16);
    std::memcpy(mask, kWindow + 32 - kept, 16);
    words[0] &= mask[0];
    words[1] = (words[1] & mask[1]) | kept << 56;
  }

  // Multiply-shift: the upper bits are what counts.
  uint64_t hash() const { return words[0] * 0x9E3779B97F4A7C15ull + words[1] * 0xC2B2AE3D27D4EB4Full; }
};

struct ShortSlot {
  static constexpr uint32_t kMaxIds = 3;
  ShortKey key;  // length 0: empty
  int32_t ids[kMaxIds];
  uint32_t count;
};

struct LongKey {
  static constexpr uint32_t kMax = 32;
  uint64_t words[4];
  uint32_t length;

  // 32 bytes from `text` on must be readable, of which the first `length` <= 32 are the key.
  LongKey(const uint8_t* text, uint32_t length) : length(length) {
    uint64_t mask[4];
    std::memcpy(words, text, 32);
    std::memcpy(mask, kWindow + 32 - length, 32);
    for (int i = 0; i < 4; ++i) words[i] &= mask[i];
  }

  uint64_t hash() const {
    return words[0] * 0x9E3779B97F4A7C15ull + words[1] * 0xC2B2AE3D27D4EB4Full + words[2] * 0x165667B19E3779F9ull +
           words[3] * 0x27D4EB2F165667C5ull + length * 0xD6E8FEB86659FD93ull;
  }
};

struct alignas(64) LongSlot {
  static constexpr uint32_t kMaxIds = 7;
  uint64_t key[4];
  int32_t ids[kMaxIds];
  uint32_t meta;  // length of the key << 8 | how many ids; 0: empty

  uint32_t count() const { return meta & 0xFF; }
  bool holds(const LongKey& wanted) const {
    return ((wanted.words[0] ^ key[0]) | (wanted.words[1] ^ key[1]) | (wanted.words[2] ^ key[2]) |
            (wanted.words[3] ^ key[3]) | (wanted.length ^ meta >> 8)) == 0;
  }
};
static_assert(sizeof(ShortSlot) == 32 && sizeof(LongSlot) == 64);

class WordCache {
 public:
  static constexpr uint32_t kDefaultBits = 16;  // 65,536 short slots and 32,768 long ones: 4 MiB

  // `bits`: two to this power short slots, and half as many long ones; 0: nothing is kept.
  explicit WordCache(uint32_t bits = kDefaultBits) : bits_(bits) {
    if (bits_ == 0) return;
    if (bits_ < 3) bits_ = 3;  // at least two pairs of each kind, so that no shift is by a whole word
    const size_t shorts = size_t{1} << bits_, longs = shorts / 2;
    // calloc takes untouched pages from the system, which are zero already.
    memory_.reset(std::calloc(shorts * sizeof(ShortSlot) + longs * sizeof(LongSlot) + 64, 1));
    if (memory_ == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    short_ = reinterpret_cast<ShortSlot*>((address + 63) / 64 * 64);
    long_ = reinterpret_cast<LongSlot*>(short_ + shorts);
  }

  bool enabled() const { return bits_ > 0; }
  ShortSlot* table() const { return short_; }

  // How far to shift a hash for the number of its pair of short slots.
  uint32_t shift() const { return 65 - bits_; }

  // Finds a key in a pair of slots, or returns nullptr.
  static const ShortSlot* find(const ShortSlot* pair, const ShortKey& key) {
#if defined(FWP_SSE2)
    const __m128i wanted = _mm_load_si128(reinterpret_cast<const __m128i*>(&key));
    const auto same = [&](const ShortSlot& slot) {
      const __m128i held = _mm_load_si128(reinterpret_cast<const __m128i*>(&slot.key));
      return _mm_movemask_epi8(_mm_cmpeq_epi8(wanted, held)) == 0xFFFF;
    };
    const bool first = same(pair[0]), second = same(pair[1]);
#else
    const auto same = [&](const ShortSlot& slot) {
      return ((key.words[0] ^ slot.key.words[0]) | (key.words[1] ^ slot.key.words[1])) == 0;
    };
    const bool first = same(pair[0]), second = same(pair[1]);
#endif
    if (!(first | second)) return nullptr;
    return pair + static_cast<size_t>(second);
  }

  const LongSlot* find(const LongKey& key) const {
    const LongSlot* pair = place(key);
    if (pair[0].holds(key)) return pair;
    return pair[1].holds(key) ? pair + 1 : nullptr;
  }

  // Keeps the ids of a stretch of up to 32 bytes, if they are few enough.
  void insert(const uint8_t* text, uint32_t length, const int32_t* ids, size_t count) {
    if (length <= ShortKey::kMax && count <= ShortSlot::kMaxIds) {
      const ShortKey key(text, length);
      ShortSlot* pair = short_ + 2 * (key.hash() >> shift());
      pair[1] = pair[0];
      pair[0].key = key;
      pair[0].count = static_cast<uint32_t>(count);
      std::memcpy(pair[0].ids, ids, count * sizeof(int32_t));
    } else if (count <= LongSlot::kMaxIds) {
      const LongKey key(text, length);
      LongSlot* pair = place(key);
      pair[1] = pair[0];
      std::memcpy(pair[0].key, key.words, sizeof key.words);
      pair[0].meta = length << 8 | static_cast<uint32_t>(count);
      std::memcpy(pair[0].ids, ids, count * sizeof(int32_t));
    }
  }

 private:
  // A quarter as many pairs as there are short slots.
  LongSlot* place(const LongKey& key) const { return long_ + 2 * (key.hash() >> (66 - bits_)); }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  uint32_t bits_;
  std::unique_ptr<void, Free> memory_;
  ShortSlot* short_ = nullptr;
  LongSlot* long_ = nullptr;
};

}  // namespace chapbook
