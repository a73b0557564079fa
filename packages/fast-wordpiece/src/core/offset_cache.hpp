// The cache of ids with offsets and word indices, for callers who want these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "buffer.hpp"
#include "cache.hpp"

namespace chapbook {

struct Offset {
  uint32_t start, end;
};

// The tokens of one text. `offsets` and `words` are filled where they are wanted.
struct Tokens {
  Buffer<int32_t> ids;
  Buffer<Offset> offsets;
  Buffer<int32_t> words;  // index of the pre-token within the text

  void clear() {
    ids.clear();
    offsets.clear();
    words.clear();
  }
};

// A stretch of up to 24 bytes with its tokens, in one cache line.
struct alignas(64) OffsetSlot {
  static constexpr uint32_t kMaxKey = 24;
  static constexpr uint32_t kMaxTokens = 5;

  uint64_t key[3];
  int32_t ids[kMaxTokens];
  uint8_t starts[kMaxTokens], ends[kMaxTokens];  // from the start of the stretch
  uint8_t words[kMaxTokens];                     // from its first word
  uint8_t count;        // of tokens
  uint8_t units;        // length of the stretch in units of offsets
  uint8_t word_count;
  uint8_t length_unit;  // bytes of the key, and 128 where offsets count bytes; 0: empty
};
static_assert(sizeof(OffsetSlot) == 64);

struct OffsetKey {
  uint64_t words[3];
  uint8_t length_unit;

  // 24 bytes from `text` on must be readable, of which the first `length` <= 24 are the key.
  OffsetKey(const uint8_t* text, uint32_t length, bool bytes)
      : length_unit(static_cast<uint8_t>(length | (bytes ? 128 : 0))) {
    uint64_t mask[3];
    std::memcpy(words, text, sizeof words);
    std::memcpy(mask, kWindow + 32 - length, sizeof mask);
    for (int i = 0; i < 3; ++i) words[i] &= mask[i];
  }

  uint64_t hash() const {
    return words[0] * 0x9E3779B97F4A7C15ull + words[1] * 0xC2B2AE3D27D4EB4Full + words[2] * 0x165667B19E3779F9ull +
           length_unit * 0xD6E8FEB86659FD93ull;
  }
  bool matches(const OffsetSlot& slot) const {
    return ((words[0] ^ slot.key[0]) | (words[1] ^ slot.key[1]) | (words[2] ^ slot.key[2]) |
            static_cast<uint64_t>(length_unit ^ slot.length_unit)) == 0;
  }
};

// Takes its memory when it is first used: most callers want ids alone.
class OffsetCache {
 public:
  // `bits`: two to this power slots, in pairs; 0: nothing is kept.
  explicit OffsetCache(uint32_t bits) : bits_(bits) {}

  bool enabled() const { return bits_ > 0; }

  OffsetSlot* pair(const OffsetKey& key) {
    if (slots_ == nullptr) allocate();
    return slots_ + 2 * (bits_ == 1 ? 0 : key.hash() >> (65 - bits_));
  }

  static const OffsetSlot* find(const OffsetSlot* pair, const OffsetKey& key) {
    if (key.matches(pair[0])) return pair;
    return key.matches(pair[1]) ? pair + 1 : nullptr;
  }

  // Keeps the tokens from `from` on, which are those of a stretch at `at` whose first word is `word`,
  // if they are few enough and have both offsets and words.
  static void insert(OffsetSlot* pair, const OffsetKey& key, const Tokens& tokens, size_t from, uint32_t at,
                     int32_t word, uint32_t units, int32_t word_count) {
    const size_t count = tokens.ids.size() - from;
    if (count > OffsetSlot::kMaxTokens) return;
    pair[1] = pair[0];
    OffsetSlot& slot = pair[0];
    std::memcpy(slot.key, key.words, sizeof slot.key);
    for (size_t i = 0; i < count; ++i) {
      slot.ids[i] = tokens.ids[from + i];
      slot.starts[i] = static_cast<uint8_t>(tokens.offsets[from + i].start - at);
      slot.ends[i] = static_cast<uint8_t>(tokens.offsets[from + i].end - at);
      slot.words[i] = static_cast<uint8_t>(tokens.words[from + i] - word);
    }
    slot.count = static_cast<uint8_t>(count);
    slot.units = static_cast<uint8_t>(units);
    slot.word_count = static_cast<uint8_t>(word_count);
    slot.length_unit = key.length_unit;
  }

  // Appends the tokens of a slot to all three buffers.
  static void append(const OffsetSlot& slot, uint32_t at, int32_t word, Tokens& out) {
    const size_t size = out.ids.size(), count = slot.count;
    out.ids.resize(size + count);
    out.offsets.resize(size + count);
    out.words.resize(size + count);
    for (size_t i = 0; i < count; ++i) {
      out.ids[size + i] = slot.ids[i];
      out.offsets[size + i] = {at + slot.starts[i], at + slot.ends[i]};
      out.words[size + i] = word + slot.words[i];
    }
  }

 private:
  void allocate() {
    const size_t slots = size_t{1} << bits_;
    memory_.reset(std::calloc(slots + 1, sizeof(OffsetSlot)));
    if (memory_ == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    slots_ = reinterpret_cast<OffsetSlot*>((address + alignof(OffsetSlot) - 1) / alignof(OffsetSlot) * alignof(OffsetSlot));
  }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  uint32_t bits_;
  std::unique_ptr<void, Free> memory_;
  OffsetSlot* slots_ = nullptr;
};

}  // namespace chapbook
