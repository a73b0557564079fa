// Ids of a text in one pass: normalise, pre-tokenise and match, without a token object or an offset.
//
// The scan finds the stretches between ASCII white space and ASCII punctuation. Each is looked up in
// the cache as it stands; what the cache does not know goes character by character through the table
// of the raw text into LinMaxMatch. Cutting there is safe: nothing that the normaliser does reaches
// across these characters.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "buffer.hpp"
#include "cache.hpp"
#include "linmaxmatch.hpp"
#include "model.hpp"
#include "normalize.hpp"
#include "offset_cache.hpp"
#include "scan.hpp"
#include "utf8.hpp"

namespace chapbook {

inline constexpr size_t kMostStretches = kTile + kBlock;

// What one thread needs while it encodes; a thread takes one and gives it back.
struct Scratch {
  explicit Scratch(uint32_t cache_bits)
      : cache(cache_bits), offset_cache(cache_bits > 1 ? cache_bits - 1 : cache_bits) {}

  WordCache cache;
  OffsetCache offset_cache;
  NormalizedText normalized;
  uint16_t starts[kMostStretches], ends[kMostStretches];
  uint32_t places[kMostStretches];
  ShortKey keys[kMostStretches];
  alignas(64) uint8_t tile[kTile + kBlock + LongKey::kMax];
};

// Appends the ids of a stretch of text without a boundary.
inline void encode_stretch(const Model& model, Scratch& scratch, const uint8_t* p, size_t n, Buffer<int32_t>& out) {
  const size_t start = out.size();
  Matcher matcher(model.trie, model.unknown, model.max_chars, out);
  auto take = [&](uint32_t entry) {
    switch (CharEntry::kind(entry)) {
      case CharEntry::kLetter: matcher.push(CharEntry::value(entry)); break;
      case CharEntry::kSpace: matcher.finish(); break;
      case CharEntry::kSingle: matcher.single(CharEntry::id(entry)); break;
      default: break;
    }
  };
  for (const uint8_t *at = p, *end = p + n; at < end;) {
    const Decoded d = decode(at, end);
    at += d.bytes;
    const uint32_t entry = model.raw[d.cp];
    if (CharEntry::kind(entry) == CharEntry::kLetter) {
      matcher.push(CharEntry::value(entry));
    } else if (CharEntry::kind(entry) == CharEntry::kSeveral) {
      for (uint32_t part : model.raw.several(CharEntry::value(entry))) take(part);
    } else if (CharEntry::kind(entry) == CharEntry::kReordered) {
      out.resize(start);
      encode_normalized(model, scratch.normalized, p, n, out);
      return;
    } else {
      take(entry);
    }
  }
  matcher.finish();
}

// Cuts a text between stretches into tiles, and calls `on_tile(text, n)` for each, or `on_long(text, n)`
// for a stretch that is longer than a tile.
template <class OnTile, class OnLong>
void each_tile(const uint8_t* text, size_t n, OnTile&& on_tile, OnLong&& on_long) {
  while (n > 0) {
    size_t count = n;
    bool tile = true;
    if (count > kTile) {
      count = kTile;
      while (count > 0 && !is_boundary(text[count - 1])) --count;
      tile = count > 0;
      while (!tile && count < n && !is_boundary(text[count])) ++count;
    }
    if (tile) {
      on_tile(text, count);
    } else {
      on_long(text, count);
    }
    text += count;
    n -= count;
  }
}

class FastPath {
 public:
  FastPath(const Model& model, Scratch& scratch, Scan scan) : model_(model), scratch_(scratch), scan_(scan) {}

  // Appends the ids of `n` bytes of UTF-8.
  void encode(const uint8_t* text, size_t n, Buffer<int32_t>& out) {
    each_tile(
        text, n, [&](const uint8_t* tile, size_t size) { encode_tile(tile, size, out); },
        [&](const uint8_t* stretch, size_t size) { encode_stretch(model_, scratch_, stretch, size, out); });
  }

 private:
  void encode_tile(const uint8_t* text, size_t n, Buffer<int32_t>& out) {
    Scratch& s = scratch_;
    const size_t count = scan_(text, n, model_.normalizer.lowercase, s.tile, s.starts, s.ends);
    if (!s.cache.enabled()) {
      for (size_t i = 0; i < count; ++i) encode_stretch(model_, s, s.tile + s.starts[i], length_of(i), out);
      return;
    }
    // First where each stretch would be, so that memory is on its way; then what is there. What the
    // loops use lies in variables of their own, because the compiler must take every store of an id
    // for one that may change any object.
    const uint8_t* const tile = s.tile;
    const uint16_t *const starts = s.starts, *const ends = s.ends;
    uint32_t* const places = s.places;
    ShortKey* const keys = s.keys;
    const ShortSlot* const table = s.cache.table();
    const uint32_t shift = s.cache.shift();
    for (size_t i = 0; i < count; ++i) {
      const ShortKey key(tile + starts[i], static_cast<uint32_t>(ends[i] - starts[i]));
      keys[i] = key;
      places[i] = static_cast<uint32_t>(key.hash() >> shift) * 2;
      prefetch(table + places[i]);
    }
    constexpr size_t kSlotIds = ShortSlot::kMaxIds + 1;  // a slot is copied with what lies behind its ids
    out.reserve_more(count * kSlotIds);
    int32_t* to = out.end();
    for (size_t i = 0; i < count; ++i) {
      if (const ShortSlot* slot = WordCache::find(table + places[i], keys[i])) [[likely]] {
        std::memcpy(to, slot->ids, kSlotIds * sizeof(int32_t));
        to += slot->count;
        continue;
      }
      out.resize(static_cast<size_t>(to - out.data()));
      encode_other(tile + starts[i], length_of(i), out);
      out.reserve_more((count - i) * kSlotIds);
      to = out.end();
    }
    out.resize(static_cast<size_t>(to - out.data()));
  }

  uint32_t length_of(size_t i) const { return static_cast<uint32_t>(scratch_.ends[i] - scratch_.starts[i]); }

  // Encodes a stretch that is no short one of the cache.
  void encode_other(const uint8_t* text, uint32_t length, Buffer<int32_t>& out) {
    // Ideographs are words of their own, so text that begins with one seldom comes again as it is.
    if (length > LongKey::kMax || (*text >= 0xE3 && *text <= 0xE9)) {
      encode_stretch(model_, scratch_, text, length, out);
      return;
    }
    if (const LongSlot* slot = scratch_.cache.find(LongKey(text, length))) {
      out.append(slot->ids, slot->count());
      return;
    }
    const size_t start = out.size();
    encode_stretch(model_, scratch_, text, length, out);
    scratch_.cache.insert(text, length, out.data() + start, out.size() - start);
  }

  static void prefetch(const void* at) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(at);
#else
    (void)at;
#endif
  }

  const Model& model_;
  Scratch& scratch_;
  const Scan scan_;
};

}  // namespace chapbook
