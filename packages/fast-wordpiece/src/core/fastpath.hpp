// Ids of a text in one pass: normalise, pre-tokenise and match, without a token object or an offset.
//
// The scan finds what lies between ASCII white space and ASCII punctuation. Each such stretch is
// looked up in the cache as it stands; what the cache does not know goes character by character
// through the table of the raw text into LinMaxMatch. Cutting there is safe: nothing that the
// normaliser does reaches across these characters.
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
#include "scan.hpp"
#include "utf8.hpp"

namespace chapbook {

// What one thread needs while it encodes; a thread takes one and gives it back.
struct Scratch {
  explicit Scratch(uint32_t cache_bits) : cache(cache_bits) {}

  WordCache cache;
  NormalizedText normalized;
  Stretch stretches[kTile + kBlock];
  Slot* places[kTile + kBlock];
  alignas(64) uint8_t tile[kTile + kBlock + Slot::kMaxKey];
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

class FastPath {
 public:
  FastPath(const Model& model, Scratch& scratch, Scan scan) : model_(model), scratch_(scratch), scan_(scan) {}

  // Appends the ids of `n` bytes of UTF-8.
  void encode(const uint8_t* text, size_t n, Buffer<int32_t>& out) {
    while (n > 0) {
      size_t count = n;
      if (count > kTile) {
        count = kTile;
        while (count > 0 && !is_boundary(text[count - 1])) --count;
        if (count == 0) {  // One stretch is longer than a tile.
          while (count < n && !is_boundary(text[count])) ++count;
          encode_stretch(model_, scratch_, text, count, out);
          text += count;
          n -= count;
          continue;
        }
      }
      encode_tile(text, count, out);
      text += count;
      n -= count;
    }
  }

 private:
  void encode_tile(const uint8_t* text, size_t n, Buffer<int32_t>& out) {
    const size_t count = scan_(text, n, model_.normalizer.lowercase, scratch_.tile, scratch_.stretches);
    if (!scratch_.cache.enabled()) {
      for (size_t i = 0; i < count; ++i) {
        const Stretch s = scratch_.stretches[i];
        encode_stretch(model_, scratch_, scratch_.tile + s.at, s.length, out);
      }
      return;
    }
    // First where each stretch would be, so that memory is on its way; then what is there.
    for (size_t i = 0; i < count; ++i) {
      const Stretch s = scratch_.stretches[i];
      Slot* place = scratch_.cache.place(scratch_.tile + s.at, s.length);
      prefetch(place);
      prefetch(place + 1);
      scratch_.places[i] = place;
    }
    out.reserve_more(n + Slot::kMaxIds + 1);
    for (size_t i = 0; i < count; ++i) {
      const Stretch s = scratch_.stretches[i];
      const uint8_t* word = scratch_.tile + s.at;
      Slot* place = scratch_.places[i];
      const Slot* slot = WordCache::find(place, word, s.length);
      if (slot != nullptr) [[likely]] {
        out.reserve_more(Slot::kMaxIds + 1);
        std::memcpy(out.end(), slot->ids, sizeof slot->ids);
        out.resize(out.size() + slot->count());
      } else {
        encode_new(word, s.length, place, out);
      }
    }
  }

  void encode_new(const uint8_t* word, uint32_t length, Slot* place, Buffer<int32_t>& out) {
    const size_t start = out.size();
    encode_stretch(model_, scratch_, word, length, out);
    // Ideographs are words of their own, so text that begins with one seldom comes again as it is.
    if (length > Slot::kMaxKey || (*word >= 0xE3 && *word <= 0xE9)) return;
    const size_t count = out.size() - start;
    if (count <= Slot::kMaxIds) WordCache::insert(place, word, length, out.data() + start, static_cast<uint32_t>(count));
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
