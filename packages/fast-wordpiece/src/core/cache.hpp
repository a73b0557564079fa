// A bounded cache from the bytes of a word, as they stand in the text, to its ids.
//
// One slot is one cache line: a key of up to 32 bytes and up to 7 ids. Two slots share a place; what
// is found is never moved, what is new displaces the older of the two. The cache is a pure function
// of the vocabulary, so its size changes speed and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace chapbook {

struct alignas(64) Slot {
  static constexpr uint32_t kMaxKey = 32;
  static constexpr uint32_t kMaxIds = 7;

  uint64_t key[4];
  uint32_t meta;  // bytes of the key << 8 | how many ids; 0: empty
  int32_t ids[kMaxIds];

  uint32_t count() const { return meta & 0xFF; }
};
static_assert(sizeof(Slot) == 64);

// The first `length` <= 32 of the 32 bytes at a place, and zeros.
struct WordKey {
  uint64_t words[4];

  WordKey(const uint8_t* text, uint32_t length) {
    uint64_t mask[4];
    std::memcpy(words, text, 32);
    std::memcpy(mask, kWindow + 32 - length, 32);
    for (int i = 0; i < 4; ++i) words[i] &= mask[i];
  }

  // A window of 32 bytes over ones and zeros keeps the first bytes.
  alignas(64) static constexpr uint8_t kWindow[64] = {
      0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
      0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
};

class WordCache {
 public:
  static constexpr uint32_t kDefaultBits = 15;  // 32,768 slots, 2 MiB

  // `bits`: two to this power slots, in pairs; 0: nothing is kept.
  explicit WordCache(uint32_t bits = kDefaultBits) : bits_(bits) {
    if (bits_ == 0) return;
    // calloc takes untouched pages from the system, which are zero already.
    memory_.reset(std::calloc((size_t{1} << bits_) + 1, sizeof(Slot)));
    if (memory_ == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    slots_ = reinterpret_cast<Slot*>((address + alignof(Slot) - 1) / alignof(Slot) * alignof(Slot));
  }

  bool enabled() const { return bits_ > 0; }

  // Returns the pair of slots for a word; 32 bytes from `text` on must be readable. The hash takes in
  // the first 16 bytes and the length: what they do not tell apart, find() does.
  Slot* place(const uint8_t* text, uint32_t length) {
    uint64_t words[2], mask[2];
    std::memcpy(words, text, 16);
    std::memcpy(mask, WordKey::kWindow + 32 - (length < 16 ? length : 16), 16);
    const uint64_t sum = ((words[0] & mask[0]) + length) * 0x9E3779B97F4A7C15ull ^
                         (words[1] & mask[1]) * 0xC2B2AE3D27D4EB4Full;
    const uint64_t hash = (sum ^ sum >> 32) * 0x9FB21C651E98DF25ull;
    return &slots_[(hash >> (64 - bits_)) & ~uint64_t{1}];
  }

  static const Slot* find(const Slot* pair, const uint8_t* text, uint32_t length) {
    if (length > Slot::kMaxKey) return nullptr;
    const WordKey key(text, length);
    if (matches(pair[0], key, length)) return &pair[0];
    return matches(pair[1], key, length) ? &pair[1] : nullptr;
  }

  static void insert(Slot* pair, const uint8_t* text, uint32_t length, const int32_t* ids, uint32_t count) {
    const WordKey key(text, length);
    pair[1] = pair[0];
    std::memcpy(pair[0].key, key.words, sizeof pair[0].key);
    std::memcpy(pair[0].ids, ids, count * sizeof(int32_t));
    pair[0].meta = length << 8 | count;
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  static bool matches(const Slot& slot, const WordKey& key, uint32_t length) {
    return ((key.words[0] ^ slot.key[0]) | (key.words[1] ^ slot.key[1]) | (key.words[2] ^ slot.key[2]) |
            (key.words[3] ^ slot.key[3]) | (length ^ slot.meta >> 8)) == 0;
  }

  uint32_t bits_;
  std::unique_ptr<void, Free> memory_;
  Slot* slots_ = nullptr;
};

}  // namespace chapbook
