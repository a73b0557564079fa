// Many texts at once, on several threads, into the rows of one batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "encoder.hpp"
#include "parallel.hpp"
#include "post.hpp"

namespace chapbook {

// Scratch memory that outlives a call, so that its caches stay warm. Nobody waits for it: who cannot
// have the lock at once, as in the child of a fork in a bad moment, makes scratch memory of its own.
class ScratchPool {
 public:
  explicit ScratchPool(uint32_t cache_bits) : cache_bits_(cache_bits) {}

  std::unique_ptr<Scratch> take() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock && !free_.empty()) {
      auto scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
    return std::make_unique<Scratch>(cache_bits_);
  }

  void give(std::unique_ptr<Scratch> scratch) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) free_.push_back(std::move(scratch));
  }

 private:
  const uint32_t cache_bits_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

class Borrowed {
 public:
  explicit Borrowed(ScratchPool& pool) : pool_(pool), scratch_(pool.take()) {}
  ~Borrowed() { pool_.give(std::move(scratch_)); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Scratch& operator*() { return *scratch_; }

 private:
  ScratchPool& pool_;
  std::unique_ptr<Scratch> scratch_;
};

// The texts of one side of a batch. Where `splits` is given, the words of sample i are
// texts[splits[i]] .. texts[splits[i + 1] - 1]. A text without data is null.
struct Texts {
  std::span<const std::string_view> texts;
  std::span<const int64_t> splits;

  size_t size() const { return splits.empty() ? texts.size() : splits.size() - 1; }
};

struct BatchOptions {
  Wanted wanted;
  bool special = true;  // add the template's special tokens
  Truncation truncation;
  bool count_only = false;  // keep no tokens: Rows::ends then holds each row's length
  unsigned threads = 1;
  // Called now and then on the calling thread; false stops the work.
  std::function<bool()> go_on = [] { return true; };
};

// The work was stopped by BatchOptions::go_on.
struct Stopped : std::exception {};

// Puts the parts of a batch, or the pieces of a text, together. Where each goes is known before the
// first is copied, so that the threads share the copying, and the first writing of fresh memory.
inline Rows joined(std::span<Rows> parts, size_t threads) {
  if (parts.empty()) return {};
  if (parts.size() == 1) return std::move(parts[0]);
  struct Place {
    size_t token, row;
  };
  std::vector<Place> places;
  places.reserve(parts.size());
  size_t tokens = 0, offsets = 0, rows = 0;
  for (const Rows& part : parts) {
    places.push_back({tokens, rows});
    tokens += part.tokens.ids.size();
    offsets += part.tokens.offsets.size();
    rows += part.ends.size();
  }
  Rows all;
  all.tokens.ids.resize(tokens);
  all.tokens.offsets.resize(offsets);  // as many as tokens, or none
  all.tokens.words.resize(offsets);
  all.ends.resize(rows);
  all.samples.resize(rows);
  all.firsts.resize(rows);
  all.seconds.resize(rows);
  all.overflow.resize(rows);
  constexpr size_t kFew = 64 * 1024;  // tokens that are copied sooner than a thread starts
  in_parallel(parts.size(), std::min(threads, 1 + tokens / kFew), [&](size_t i, size_t) {
    const Rows part = std::move(parts[i]);  // freed by who copied it
    const auto [token, row] = places[i];
    all.tokens.ids.put(token, part.tokens.ids);
    for (size_t j = 0; j < part.tokens.offsets.size(); ++j) {
      const Offset offset = part.tokens.offsets[j];
      const int32_t word = part.tokens.words[j];
      const Encoder::Position before = word < 0 ? Encoder::Position{} : part.before;  // special tokens stay
      all.tokens.offsets[token + j] = {offset.start + before.at, offset.end + before.at};
      all.tokens.words[token + j] = word + before.word;
    }
    // With count_only there are no tokens, and the ends are lengths.
    for (size_t j = 0; j < part.ends.size(); ++j) all.ends[row + j] = part.ends[j] + static_cast<int64_t>(token);
    all.samples.put(row, part.samples);
    all.firsts.put(row, part.firsts);
    all.seconds.put(row, part.seconds);
    all.overflow.put(row, part.overflow);
  });
  return all;
}

class BatchEncoder {
 public:
  BatchEncoder(const Encoder& encoder, const Template& plan, ScratchPool& pool, const BatchOptions& options)
      : encoder_(encoder), plan_(plan), pool_(pool), options_(options) {}

  Rows encode(const Texts& first, const Texts* second) {
    if (second == nullptr && options_.truncation.enabled) encode_long_texts(first);
    std::vector<Chunk> chunks = chunked(first, second);
    std::vector<Rows> parts = encode_chunks(first, second, chunks);
    return joined(parts, options_.threads);
  }

 private:
  static constexpr size_t kChunk = 64 * 1024;
  static constexpr size_t kLong = 1024 * 1024;

  // What a thread does at a time: a range of samples, or a piece of one long text.
  struct Chunk {
    Range samples;
    Range piece{0, 0};           // bytes of the text; none where these are whole samples
    size_t count = 0;            // tokens of the piece
    Encoder::Position length{};  // of the piece
  };

  // Returns a part of the batch for each chunk.
  std::vector<Rows> encode_chunks(const Texts& first, const Texts* second, std::vector<Chunk>& chunks) const {
    std::vector<Rows> parts(chunks.size());
    std::vector<std::optional<Borrowed>> scratches(std::min<size_t>(options_.threads, chunks.size()));
    in_parallel(chunks.size(), options_.threads, [&](size_t i, size_t thread) {
      if (!scratches[thread]) scratches[thread].emplace(pool_);
      Scratch& scratch = **scratches[thread];
      // Not in its place yet: there, the threads would write to each other's cache lines.
      Rows part;
      if (chunks[i].piece.size() > 0) {
        encode_piece(scratch, first, chunks[i], part.tokens);
      } else {
        Tokens a, b;
        for (size_t sample = chunks[i].samples.begin; sample < chunks[i].samples.end; ++sample) {
          encode_sample(scratch, first, second, sample, a, b, part);
          if (options_.count_only) part.tokens.clear();
        }
      }
      parts[i] = std::move(part);
      if (thread == 0 && !options_.go_on()) throw Stopped();
    });
    end_long_rows(first, chunks, parts);
    return parts;
  }

  void encode_sample(Scratch& scratch, const Texts& first, const Texts* second, size_t sample, Tokens& a, Tokens& b,
                     Rows& out) const {
    const auto number = static_cast<int32_t>(sample);
    if (first.splits.empty() && first.texts[sample].data() == nullptr) {  // null
      Assembler::end_row(out, number, 0, 0, 0);
      return;
    }
    if (second == nullptr && !options_.truncation.enabled) {
      straight(scratch, first, sample, out);
      return;
    }
    const Tokens* tokens_a = &a;
    if (const Tokens* done = long_text(first, sample)) {
      tokens_a = done;
    } else {
      a.clear();
      encode_side(scratch, first, sample, a);
    }
    if (second == nullptr) {
      write_rows(*tokens_a, nullptr, plan_, options_.special, options_.truncation, options_.wanted, number, out);
      return;
    }
    b.clear();
    encode_side(scratch, *second, sample, b);
    write_rows(*tokens_a, &b, plan_, options_.special, options_.truncation, options_.wanted, number, out);
  }

  // Writes the tokens of a sample where they will stay, with the special tokens around them.
  void straight(Scratch& scratch, const Texts& texts, size_t sample, Rows& out) const {
    size_t count = 0;
    for (const Template::Piece& piece : row_plan()) {
      if (piece.kind == Template::kSpecial) {
        Assembler::special(out.tokens, piece.id, options_.wanted);
        continue;
      }
      const size_t before = out.tokens.ids.size();
      encode_side(scratch, texts, sample, out.tokens);
      count = out.tokens.ids.size() - before;
    }
    Assembler::end_row(out, static_cast<int32_t>(sample), count, 0, 0);
  }

  // What a row of one text is made of; its own tokens alone where truncation comes after them.
  const std::vector<Template::Piece>& row_plan() const {
    static const std::vector<Template::Piece> kBare{{Template::kFirst, 0}};
    return options_.special && !options_.truncation.enabled ? plan_.single : kBare;
  }

  void encode_side(Scratch& scratch, const Texts& side, size_t sample, Tokens& out) const {
    if (side.splits.empty()) {
      encode_text(scratch, side.texts[sample], out);
      return;
    }
    // Words given by the caller: each is a text of its own, and all of its tokens are that word.
    const auto begin = side.splits[sample], end = side.splits[sample + 1];
    for (int64_t i = begin; i < end; ++i) {
      const size_t from = out.words.size();
      encode_text(scratch, side.texts[static_cast<size_t>(i)], out);
      std::fill(out.words.begin() + from, out.words.end(), static_cast<int32_t>(i - begin));
    }
  }

  void encode_text(Scratch& scratch, std::string_view text, Tokens& out) const {
    encoder_.encode(scratch, reinterpret_cast<const uint8_t*>(text.data()), text.size(), options_.wanted, out);
  }

  // Texts so long that they would keep one thread busy alone, and deaf, are cut into pieces. Returns
  // where each ends; empty where a text stays whole.
  std::vector<size_t> cuts(const Texts& texts, size_t i) const {
    const std::string_view text = texts.texts[i];
    if (text.size() < kLong) return {};
    return encoder_.cuts(reinterpret_cast<const uint8_t*>(text.data()), text.size(), 4 * kChunk);
  }

  static void add_pieces(size_t sample, const std::vector<size_t>& ends, std::vector<Chunk>& chunks) {
    size_t begin = 0;
    for (const size_t end : ends) {
      chunks.push_back({{sample, sample + 1}, {begin, end}});
      begin = end;
    }
  }

  // The first and the last piece have the special tokens around the text.
  void encode_piece(Scratch& scratch, const Texts& texts, Chunk& chunk, Tokens& out) const {
    const std::string_view text = texts.texts[chunk.samples.begin];
    bool before = true;
    for (const Template::Piece& piece : row_plan()) {
      if (piece.kind != Template::kSpecial) {
        const size_t from = out.ids.size();
        const auto* data = reinterpret_cast<const uint8_t*>(text.data()) + chunk.piece.begin;
        chunk.length = encoder_.encode(scratch, data, chunk.piece.size(), options_.wanted, out);
        chunk.count = out.ids.size() - from;
        before = false;
      } else if (before ? chunk.piece.begin == 0 : chunk.piece.end == text.size()) {
        Assembler::special(out, piece.id, options_.wanted);
      }
    }
    if (options_.count_only && !options_.truncation.enabled) out = {};
  }

  // Tells pieces what goes before them, and ends the row of each long text.
  void end_long_rows(const Texts& texts, const std::vector<Chunk>& chunks, std::vector<Rows>& parts) const {
    Encoder::Position position;
    size_t count = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Chunk& chunk = chunks[i];
      if (chunk.piece.size() == 0) continue;
      if (chunk.piece.begin == 0) {
        position = {};
        count = 0;
      }
      parts[i].before = position;
      position.at += chunk.length.at;
      position.word += chunk.length.word;
      count += chunk.count;
      const size_t sample = chunk.samples.begin;
      if (options_.truncation.enabled || chunk.piece.end < texts.texts[sample].size()) continue;
      Assembler::end_row(parts[i], static_cast<int32_t>(sample), count, 0, 0);
      const size_t added = options_.special ? plan_.specials(false) : 0;
      if (options_.count_only) parts[i].ends[0] = static_cast<int64_t>(count + added);
    }
  }

  // Truncation wants all tokens of a long text at once.
  void encode_long_texts(const Texts& texts) {
    if (!texts.splits.empty()) return;
    std::vector<Chunk> chunks;
    for (size_t i = 0; i < texts.texts.size(); ++i) add_pieces(i, cuts(texts, i), chunks);
    std::vector<Rows> parts = encode_chunks(texts, nullptr, chunks);
    for (size_t begin = 0, end; begin < chunks.size(); begin = end) {
      for (end = begin + 1; end < chunks.size() && chunks[end].piece.begin > 0;) ++end;
      Rows whole = joined(std::span(parts).subspan(begin, end - begin), options_.threads);
      long_.push_back({chunks[begin].samples.begin, std::move(whole.tokens)});
    }
  }

  const Tokens* long_text(const Texts& texts, size_t sample) const {
    if (long_.empty() || !texts.splits.empty()) return nullptr;
    const auto found = std::lower_bound(long_.begin(), long_.end(), sample,
                                        [](const Long& each, size_t text) { return each.text < text; });
    return found != long_.end() && found->text == sample ? &found->tokens : nullptr;
  }

  // Ranges of samples of at least kChunk bytes, and the pieces of long texts between them.
  std::vector<Chunk> chunked(const Texts& first, const Texts* second) const {
    std::vector<Chunk> chunks;
    const bool straight = second == nullptr && first.splits.empty() && !options_.truncation.enabled;
    const size_t n = first.size();
    size_t begin = 0, bytes = 0;
    auto weight = [&](const Texts& side, size_t sample) {
      size_t sum = 0;
      const size_t from = side.splits.empty() ? sample : static_cast<size_t>(side.splits[sample]);
      const size_t to = side.splits.empty() ? sample + 1 : static_cast<size_t>(side.splits[sample + 1]);
      for (size_t i = from; i < to; ++i) sum += side.texts[i].size() + 16;
      return sum;
    };
    auto end_chunk = [&](size_t end) {
      if (begin < end) chunks.push_back({{begin, end}});
      begin = end;
      bytes = 0;
    };
    for (size_t i = 0; i < n; ++i) {
      const std::vector<size_t> ends = straight ? cuts(first, i) : std::vector<size_t>();
      if (!ends.empty()) {
        end_chunk(i);
        add_pieces(i, ends, chunks);
        begin = i + 1;
        continue;
      }
      bytes += weight(first, i) + (second == nullptr ? 0 : weight(*second, i));
      if (bytes >= kChunk) end_chunk(i + 1);
    }
    end_chunk(n);
    return chunks;
  }

  struct Long {
    size_t text;
    Tokens tokens;
  };

  const Encoder& encoder_;
  const Template& plan_;
  ScratchPool& pool_;
  const BatchOptions& options_;
  std::vector<Long> long_;
};

}  // namespace chapbook
