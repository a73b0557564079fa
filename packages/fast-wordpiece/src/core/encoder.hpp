// One text to tokens: added tokens cut out, the rest by the fast path or, where offsets or word
// indices are wanted, by the general one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "added_tokens.hpp"
#include "buffer.hpp"
#include "fastpath.hpp"
#include "model.hpp"
#include "normalize.hpp"
#include "offset_cache.hpp"

namespace chapbook {

// Offsets and word indices come together, or neither.
struct Wanted {
  bool offsets = false;
  OffsetUnit unit = OffsetUnit::kChar;
};

class Encoder {
 public:
  struct Added {
    std::string content;
    int32_t id;
    bool normalized, single_word, lstrip, rstrip, literal;
  };

  // `trim`: offsets of added tokens leave out white space that the token took, but one space at the
  // very start where `prefix_space` (RobertaProcessing's trim_offsets and add_prefix_space).
  Encoder(std::shared_ptr<const Model> model, const std::vector<Added>& added, Scan scan,
          bool trim = false, bool prefix_space = false)
      : model_(std::move(model)), scan_(scan), trim_(trim), prefix_space_(prefix_space) {
    NormalizedText normalized;
    std::vector<std::pair<AddedTokenSet<uint8_t>::Text, AddedToken>> raw;
    std::vector<std::pair<AddedTokenSet<char32_t>::Text, AddedToken>> normal;
    for (const Added& a : added) {
      const AddedToken token{a.id, a.single_word, a.lstrip, a.rstrip, a.literal};
      const auto* bytes = reinterpret_cast<const uint8_t*>(a.content.data());
      if (!a.normalized) {
        raw.push_back({{bytes, bytes + a.content.size()}, token});
        continue;
      }
      normalized.assign(model_->normalizer, bytes, a.content.size());
      AddedTokenSet<char32_t>::Text chars;
      for (const NormalizedChar& c : normalized.chars()) chars.push_back(c.cp);
      normal.push_back({std::move(chars), token});
    }
    raw_ = AddedTokenSet<uint8_t>(std::move(raw));
    normal_ = AddedTokenSet<char32_t>(std::move(normal));
  }

  // How far a text has been read: in units of offsets, and in pre-tokens.
  struct Position {
    uint32_t at = 0;
    int32_t word = 0;
  };

  // Appends the tokens of `n` bytes of UTF-8 to `out`; offsets and words count from 0.
  Position encode(Scratch& scratch, const uint8_t* text, size_t n, const Wanted& wanted, Tokens& out) const {
    State state{scratch, wanted, out, 0, 0};
    encode_into(state, text, n);
    return {state.at, state.word};
  }

  // Cuts a long text into pieces of about `size` bytes that can be encoded apart: at white space
  // outside added tokens. Returns where each piece ends; empty where there is no such cutting.
  std::vector<size_t> cuts(const uint8_t* text, size_t n, size_t size) const {
    std::vector<size_t> ends;
    if (!normal_.empty() || raw_.any_with(is_cut)) return ends;
    size_t begin = 0;
    auto cut = [&](size_t from, size_t to) {
      for (size_t at = std::max(from, begin + size); at < to; at = begin + size) {
        while (at < to && !is_cut(text[at])) ++at;
        if (at >= to) return;
        // The white space goes with what follows it; next to an added token it may be the token's.
        if (at == from) return;
        ends.push_back(begin = at);
      }
    };
    if (raw_.empty()) {
      cut(0, n);
    } else {
      raw_.split(text, n, RawTraits(text, n), cut, [](int32_t, size_t, size_t) {});
    }
    ends.push_back(n);
    return ends;
  }

 private:
  struct State {
    Scratch& scratch;
    const Wanted& wanted;
    Tokens& out;
    uint32_t at;    // offset of what comes next
    int32_t word;  // index of the next pre-token
  };

  void encode_into(State& state, const uint8_t* text, size_t n) const {
    if (raw_.empty()) {
      segment(state, text, n);
      return;
    }
    size_t counted = 0;  // bytes up to which state.at has counted
    raw_.split(
        text, n, RawTraits(text, n),
        [&](size_t begin, size_t end) {
          skip_to(state, text, counted, begin);
          segment(state, text + begin, end - begin);
          counted = end;
        },
        [&](int32_t id, size_t begin, size_t end) {
          if (!state.wanted.offsets) {
            emit_added(state, id, {});
            return;
          }
          // A token that takes white space may begin before what is counted already.
          const uint32_t width = units(state, text + begin, end - begin);
          const uint32_t start = begin >= counted ? state.at + units(state, text + counted, begin - counted)
                                                  : state.at - units(state, text + begin, counted - begin);
          const uint32_t added_end = start + width;
          emit_added(state, id, trim_ ? trimmed(state, text + begin, end - begin, start) : Offset{start, added_end});
          state.at = added_end;
          counted = end;
        });
  }

  // The offset of an added token without the white space at its ends.
  Offset trimmed(const State& state, const uint8_t* p, size_t n, uint32_t start) const {
    const RawTraits around(p, n);
    size_t first = around.space_after(0), last = std::max(around.space_before(n), first);
    if (prefix_space_ && first > 0 && start == 0 && units(state, p, first) == 1) first = 0;
    return {start + units(state, p, first), start + units(state, p, last)};
  }

  static uint32_t units(const State& state, const uint8_t* p, size_t n) {
    return static_cast<uint32_t>(state.wanted.unit == OffsetUnit::kByte ? n : count_chars(p, n));
  }

  static void skip_to(State& state, const uint8_t* text, size_t counted, size_t begin) {
    if (state.wanted.offsets) state.at += units(state, text + counted, begin - counted);
  }

  static void emit_added(State& state, int32_t id, Offset offset) {
    state.out.ids.push(id);
    if (state.wanted.offsets) state.out.offsets.push(offset);
    if (state.wanted.offsets) state.out.words.push(state.word);
    ++state.word;
  }

  // Encodes text without added tokens of the raw kind.
  void segment(State& state, const uint8_t* p, size_t n) const {
    if (!normal_.empty()) {
      normalized_segment(state, p, n);
    } else if (state.wanted.offsets) {
      with_offsets(state, p, n);
    } else {
      FastPath(*model_, state.scratch, scan_).encode(p, n, state.out.ids);
    }
  }

  // The fast path's scan with the cache of offsets; the general path for what that does not know.
  void with_offsets(State& state, const uint8_t* p, size_t n) const {
    Scratch& scratch = state.scratch;
    const bool bytes = state.wanted.unit == OffsetUnit::kByte;
    each_tile(
        p, n,
        [&](const uint8_t* text, size_t size) {
          const size_t count = scan_(text, size, model_->normalizer.lowercase, scratch.tile, scratch.starts, scratch.ends);
          uint32_t done = 0;
          for (size_t i = 0; i < count; ++i) {
            const uint32_t start = scratch.starts[i], end = scratch.ends[i], length = end - start;
            state.at += start - done;  // white space, each one byte and one character
            done = end;
            if (length > OffsetSlot::kMaxKey || !scratch.offset_cache.enabled()) {
              general(state, text + start, length);
              continue;
            }
            const OffsetKey key(scratch.tile + start, length, bytes);
            OffsetSlot* pair = scratch.offset_cache.pair(key);
            if (const OffsetSlot* slot = OffsetCache::find(pair, key)) {
              OffsetCache::append(*slot, state.at, state.word, state.out);
              state.at += slot->units;
              state.word += slot->word_count;
              continue;
            }
            const size_t from = state.out.ids.size();
            const uint32_t at = state.at;
            const int32_t word = state.word;
            general(state, text + start, length);
            OffsetCache::insert(pair, key, state.out, from, at, word, state.at - at, state.word - word);
          }
          state.at += static_cast<uint32_t>(size) - done;
        },
        [&](const uint8_t* text, size_t size) { general(state, text, size); });
  }

  static bool is_cut(uint8_t c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

  void general(State& state, const uint8_t* p, size_t n) const {
    NormalizedText& normalized = state.scratch.normalized;
    normalized.assign(model_->normalizer, p, n, state.wanted.unit, state.at);
    state.at += normalized.length();
    words(state, normalized.chars(), 0, normalized.chars().size());
  }

  // Cuts a whole segment at the added tokens of the normalised kind.
  void normalized_segment(State& state, const uint8_t* p, size_t n) const {
    NormalizedText& normalized = state.scratch.normalized;
    normalized.assign(model_->normalizer, p, n, state.wanted.unit, state.at);
    state.at += normalized.length();
    const auto& chars = normalized.chars();
    std::u32string text;
    text.reserve(chars.size());
    for (const NormalizedChar& c : chars) text.push_back(c.cp);
    normal_.split(
        text.data(), text.size(), NormalTraits(text.data(), text.size()),
        [&](size_t begin, size_t end) { words(state, chars, begin, end); },
        [&](int32_t id, size_t begin, size_t end) {
          emit_added(state, id, {chars[begin].start, chars[end - 1].end});
        });
  }

  // Pre-tokenises and matches a range of normalised characters.
  void words(State& state, const Buffer<NormalizedChar>& chars, size_t begin, size_t end) const {
    const Model& model = *model_;
    Tokens& out = state.out;
    Matcher matcher(model.trie, model.unknown, model.max_chars, out.ids);
    auto finish = [&](size_t first, size_t last, size_t from) {  // of characters; of tokens
      const int32_t word = state.word++;
      if (!state.wanted.offsets) return;
      const size_t count = out.ids.size() - from;
      if (count == 1) {
        out.offsets.push({chars[first].start, chars[last - 1].end});
      } else {
        size_t at = first;
        for (size_t i = from; i < out.ids.size(); ++i) {
          const size_t next = at + model.chars_of(out.ids[i], i == from);
          out.offsets.push({chars[at].start, chars[next - 1].end});
          at = next;
        }
      }
      for (size_t i = 0; i < count; ++i) out.words.push(word);
    };
    size_t start = begin, from = out.ids.size();
    for (size_t i = begin; i < end; ++i) {
      const uint32_t entry = model.normal[chars[i].cp];
      if (CharEntry::kind(entry) == CharEntry::kLetter) {
        matcher.push(CharEntry::value(entry));
        continue;
      }
      matcher.finish();
      if (i > start) finish(start, i, from);
      from = out.ids.size();
      if (CharEntry::kind(entry) == CharEntry::kSingle) {
        matcher.single(CharEntry::id(entry));
        finish(i, i + 1, from);
        from = out.ids.size();
      }
      start = i + 1;
    }
    matcher.finish();
    if (end > start) finish(start, end, from);
  }

  std::shared_ptr<const Model> model_;
  Scan scan_;
  bool trim_, prefix_space_;
  AddedTokenSet<uint8_t> raw_;
  AddedTokenSet<char32_t> normal_;
};

}  // namespace chapbook
