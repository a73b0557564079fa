// All ways through the core must agree, on any vocabulary and any text, and stay within their memory.
//
// An input is a tokenizer and texts: bytes choose the normaliser, the mark, the pieces, the added
// tokens and the truncation, the rest are texts in pieces of text or in raw bytes. For each text:
//   the fast path, under every instruction set and several sizes of cache, cold and warm;
//   the path with offsets, in characters and in bytes;
//   the general path, which has neither scan nor cache;
//   LinMaxMatch, the substring way and the roll-back way, on each word;
//   batches on one thread and on several, single and paired, truncated or not, whole or counted.
// A text that is not UTF-8 must do no harm; what comes out of it is not compared.
//
//   fuzz_core [--runs N] [--seed S] [--threads]   inputs at random (--threads: batches alone)
//   fuzz_core FILE...                             the inputs in files
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "batch.hpp"
#include "encoder.hpp"
#include "max_match.hpp"
#include "model.hpp"
#include "scan.hpp"

using namespace chapbook;
using namespace std::string_view_literals;

namespace {

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);        \
      std::abort();                                                               \
    }                                                                             \
  } while (false)

constexpr std::string_view kFragments[] = {
    "a"sv, "b"sv, "c"sv, "A"sv, "B"sv, "x"sv, "ab"sv, "0"sv, "9"sv, " "sv, " "sv, "  "sv, "\t"sv, "\n"sv, "\r"sv,
    "\0"sv, "\x0b"sv, "\x7f"sv, "."sv, "!"sv, "#"sv, "##"sv, "-"sv, "["sv, "]"sv, "@"sv, "`"sv, "{"sv, "/"sv, ":"sv,
    "[MASK]"sv, "[MASK"sv, "<m>"sv, "x<m>"sv, "<"sv, ">"sv, "é"sv, "É"sv, "e\u0301"sv, "\u0301"sv, "\u0323"sv,
    "\u0345"sv, "\u0334"sv, "\u05b0"sv, "\u302a"sv, "한"sv, "각"sv, "ᄒ"sv, "中"sv, "国"sv, "\u3400"sv, "\U00020000"sv,
    "\U0002b820"sv, "\U0002f800"sv, "が"sv, "\u3099"sv, "\u200b"sv, "\u00ad"sv, "\u0085"sv, "\u00a0"sv, "\u2028"sv,
    "\u3000"sv, "İ"sv, "Σ"sv, "ß"sv, "\U0001d165"sv, "\U0001d15e"sv, "\u037e"sv, "\u0344"sv, "\u1fef"sv, "\u0f73"sv,
    "😀"sv, "ำ"sv, "\ufffd"sv, "\U0010ffff"sv, "\u166d"sv, "aaaaaaaaaaaaaa"sv, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"sv,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"sv, "abababababababababababab"sv};
constexpr std::string_view kMarks[] = {"##"sv, "##"sv, "##"sv, ""sv, "a"sv, "@"sv, "é"sv};
constexpr uint32_t kMaxChars[] = {100, 100, 100, 5, 1, 0, 1000000};

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  bool empty() const { return at_ == end_; }
  uint8_t byte() { return empty() ? 0 : *at_++; }
  uint32_t number() { return static_cast<uint32_t>(byte()) << 8 | byte(); }
  template <class T, size_t n>
  T choose(const T (&from)[n]) {
    return from[byte() % n];
  }

  std::string fragments(size_t count) {
    std::string text;
    for (size_t i = 0; i < count && !empty(); ++i) text += choose(kFragments);
    return text;
  }
  std::string raw(size_t count) {
    const size_t n = std::min(count, static_cast<size_t>(end_ - at_));
    std::string text(reinterpret_cast<const char*>(at_), n);
    at_ += n;
    return text;
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

const uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

template <class T>
bool same(const Buffer<T>& a, const Buffer<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// A text in memory that ends where the text does, so that a sanitizer sees what is read behind it.
class Exact {
 public:
  explicit Exact(std::string_view text) : memory_(new char[text.size()]), size_(text.size()) {
    if (!text.empty()) std::memcpy(memory_.get(), text.data(), text.size());
  }
  std::string_view view() const { return {memory_.get(), size_}; }

 private:
  std::unique_ptr<char[]> memory_;
  size_t size_;
};

struct Tokenizer {
  std::vector<std::string> pieces;
  std::vector<VocabPiece> vocab;
  ModelOptions options;
  std::shared_ptr<const Model> model, bare;
  std::vector<Encoder::Added> added;
  Truncation truncation;
  Template plan;
};

Tokenizer tokenizer_from(Input& in) {
  Tokenizer made;
  const uint8_t flags = in.byte();
  made.options.normalizer = {(flags & 1) == 0, (flags & 2) == 0, (flags & 4) == 0, (flags & 8) == 0, (flags & 16) != 0};
  made.options.mark = in.choose(kMarks);
  made.options.max_chars = in.choose(kMaxChars);
  made.options.unknown = 0;
  made.pieces.emplace_back("[UNK]");
  for (const char* always : {"a", "b", "x", "."}) made.pieces.emplace_back(always);
  for (const char* always : {"a", "b"}) made.pieces.push_back(made.options.mark + always);
  for (size_t count = in.byte() % 48; count > 0; --count) {
    const uint8_t kind = in.byte();
    std::string piece = in.fragments(1 + kind % 5);
    if ((kind & 64) != 0) piece = made.options.mark + piece;
    if (count_chars(bytes_of(piece), piece.size()) <= 200) made.pieces.push_back(std::move(piece));
  }
  std::sort(made.pieces.begin() + 1, made.pieces.end());
  made.pieces.erase(std::unique(made.pieces.begin() + 1, made.pieces.end()), made.pieces.end());
  std::erase_if(made.pieces, [](const std::string& piece) { return piece.empty(); });
  int32_t id = 0;
  for (const std::string& piece : made.pieces) made.vocab.push_back({piece, id++});
  made.model = Model::compile(made.vocab, made.options, "settings");
  ModelOptions bare = made.options;
  bare.literal_marks = true;
  made.bare = Model::compile(made.vocab, bare, "");
  for (size_t count = in.byte() % 5; count > 0; --count) {
    const uint8_t kind = in.byte();
    std::string content = in.fragments(1 + kind % 3);
    if (content.empty()) continue;
    made.added.push_back({std::move(content), id++, (kind & 4) != 0, (kind & 8) != 0, (kind & 16) != 0, (kind & 32) != 0,
                          (kind & 64) != 0});
  }
  const uint8_t limits = in.byte();
  if ((limits & 1) != 0) {
    made.truncation.enabled = true;
    made.truncation.overflow = (limits & 2) != 0;
    made.truncation.left = (limits & 4) != 0;
    made.truncation.strategy = static_cast<Truncation::Strategy>((limits >> 3) % 3);
    made.truncation.max_length = in.byte() % 24;
    made.truncation.stride = in.byte() % 8;
  }
  using P = Template::Piece;
  const P cls{Template::kSpecial, 1}, sep{Template::kSpecial, 2}, a{Template::kFirst, 0}, b{Template::kSecond, 0};
  made.plan = {{cls, a, sep}, (limits & 128) != 0 ? std::vector<P>{b, sep, a} : std::vector<P>{cls, a, sep, b, sep}};
  return made;
}

std::vector<Scan> scans() {
  std::vector<Scan> all;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (has_isa(isa)) all.push_back(scan_for(isa));
  }
  return all;
}

// Word by word: the three ways to cut it, and the offsets that belong to it.
void check_words(const Tokenizer& made, const Spelled& spelled, std::string_view text, const Buffer<int32_t>& expected) {
  NormalizedText normalized;
  Buffer<int32_t> all;
  each_word(text, made.options.normalizer, normalized, [&](std::string_view word) {
    Buffer<int32_t> substring, rollback, linear;
    spelled.substring(word, substring);
    spelled.rollback(word, rollback);
    int64_t steps = 0;
    spelled.linear(CountingTrie(made.bare->trie, steps), word, linear);
    CHECK(same(substring, rollback));
    CHECK(same(substring, linear));
    CHECK(steps <= 2 * static_cast<int64_t>(count_chars(bytes_of(word), word.size())) + 1);
    all.append(linear.data(), linear.size());
  });
  if (!same(all, expected)) {
    std::fprintf(stderr, "mark '%s', at most %u characters, text '%.*s'\n", made.options.mark.c_str(), made.options.max_chars,
                 static_cast<int>(text.size()), text.data());
    for (int32_t id : all) std::fprintf(stderr, "%s ", made.pieces[static_cast<size_t>(id)].c_str());
    std::fprintf(stderr, "by words, and in one go ");
    for (int32_t id : expected) std::fprintf(stderr, "%s ", made.pieces[static_cast<size_t>(id)].c_str());
  }
  CHECK(same(all, expected));
}

void check_text(const Tokenizer& made, const Spelled& spelled, std::vector<std::unique_ptr<Scratch>>& scratches,
                const std::vector<Encoder>& encoders, const std::vector<Encoder>& plain, std::string_view given) {
  const Exact exact(given);
  const std::string_view text = exact.view();
  const uint8_t* p = bytes_of(text);
  const bool valid = first_invalid(p, text.size()) == text.size();
  Tokens first;
  bool is_first = true;
  for (auto& scratch : scratches) {
    for (const Encoder& encoder : encoders) {
      for (int round = 0; round < 2; ++round) {  // cold, warm
        Tokens ids;
        encoder.encode(*scratch, p, text.size(), {}, ids);
        CHECK(ids.offsets.size() == 0 && ids.words.size() == 0);
        if (is_first) first.ids.append(ids.ids.data(), ids.ids.size());
        is_first = false;
        if (valid) CHECK(same(first.ids, ids.ids));
        for (OffsetUnit unit : {OffsetUnit::kChar, OffsetUnit::kByte}) {
          Tokens tokens;
          encoder.encode(*scratch, p, text.size(), {true, unit}, tokens);
          CHECK(tokens.offsets.size() == tokens.ids.size() && tokens.words.size() == tokens.ids.size());
          if (!valid) continue;
          CHECK(same(first.ids, tokens.ids));
          const size_t units = unit == OffsetUnit::kByte ? text.size() : count_chars(p, text.size());
          for (size_t i = 0; i < tokens.ids.size(); ++i) {
            const Offset offset = tokens.offsets[i];
            CHECK(offset.start <= offset.end && offset.end <= units);
            if (i > 0) CHECK(tokens.words[i] >= tokens.words[i - 1] && tokens.words[i] <= tokens.words[i - 1] + 1);
            if (unit == OffsetUnit::kChar) continue;
            CHECK(offset.start == text.size() || !is_continuation(p[offset.start]));
            CHECK(offset.end == text.size() || !is_continuation(p[offset.end]));
          }
          if (unit == OffsetUnit::kChar) {
            if (first.offsets.empty()) {
              first.offsets.append(tokens.offsets.data(), tokens.offsets.size());
              first.words.append(tokens.words.data(), tokens.words.size());
            }
            CHECK(same(first.offsets, tokens.offsets) && same(first.words, tokens.words));
          }
        }
      }
    }
  }
  // Without added tokens: the general path, and the words one by one.
  Tokens quick;
  plain[0].encode(*scratches[0], p, text.size(), {}, quick);
  Buffer<int32_t> general;
  NormalizedText normalized;
  encode_normalized(*made.model, normalized, p, text.size(), general);
  if (!valid) return;
  CHECK(same(quick.ids, general));
  check_words(made, spelled, text, general);
}

struct Outcome {
  Rows rows;
  bool refused = false;
};

Outcome encode_batch(const Encoder& encoder, const Tokenizer& made, ScratchPool& pool, const Texts& first,
                     const Texts* second, BatchOptions options, unsigned threads) {
  options.threads = threads;
  Outcome out;
  try {
    out.rows = BatchEncoder(encoder, made.plan, pool, options).encode(first, second);
  } catch (const TruncationError&) {
    out.refused = true;
  }
  return out;
}

void check_batches(const Tokenizer& made, const Encoder& encoder, const std::vector<std::string>& texts) {
  ScratchPool pool(6);
  std::vector<std::string_view> views(texts.begin(), texts.end());
  views.emplace_back();  // null
  // Enough bytes for several chunks, and one text that is cut into pieces.
  std::string longest;
  while (longest.size() < (size_t{5} << 18) && !texts.empty()) {
    const size_t before = longest.size();
    for (const std::string& text : texts) longest += text + " ";
    if (longest.size() == before) break;
  }
  views.emplace_back(longest);
  const size_t own = views.size();
  for (size_t i = 0, bytes = 0; bytes < 200000 && i < 20000; ++i) {
    views.push_back(views[i % own == own - 1 ? 0 : i % own]);
    bytes += views.back().size() + 16;
  }
  const std::vector<std::string_view> others(views.rbegin(), views.rend());
  std::vector<int64_t> splits{0};
  for (size_t i = 0; i < views.size(); i += 3) splits.push_back(static_cast<int64_t>(std::min(i + 3, views.size())));
  for (const bool offsets : {false, true}) {
    BatchOptions options;
    options.wanted = {offsets, OffsetUnit::kChar};
    options.truncation = made.truncation;
    const Texts single{views, {}}, pair{others, {}}, words{views, splits};
    for (const auto& [first, second] : {std::pair(&single, static_cast<const Texts*>(nullptr)), {&single, &pair}, {&words, nullptr}}) {
      const Outcome one = encode_batch(encoder, made, pool, *first, second, options, 1);
      const Outcome three = encode_batch(encoder, made, pool, *first, second, options, 3);
      CHECK(one.refused == three.refused);
      if (one.refused) continue;
      for (const Outcome* each : {&one, &three}) {
        const Tokens& tokens = each->rows.tokens;
        const size_t wanted = offsets ? tokens.ids.size() : 0;
        CHECK(tokens.offsets.size() == wanted && tokens.words.size() == wanted);
      }
      CHECK(same(one.rows.tokens.ids, three.rows.tokens.ids) && same(one.rows.ends, three.rows.ends));
      CHECK(same(one.rows.tokens.offsets, three.rows.tokens.offsets));
      CHECK(same(one.rows.tokens.words, three.rows.tokens.words));
      CHECK(same(one.rows.samples, three.rows.samples) && same(one.rows.overflow, three.rows.overflow));
      if (offsets || second != nullptr || made.truncation.overflow) continue;
      BatchOptions counting = options;
      counting.count_only = true;
      ScratchPool other(0);
      const Outcome counted = encode_batch(encoder, made, other, *first, nullptr, counting, 2);
      CHECK(counted.rows.ends.size() == one.rows.ends.size());
      for (size_t i = 0; i < one.rows.ends.size(); ++i) {
        CHECK(counted.rows.ends[i] == one.rows.ends[i] - (i == 0 ? 0 : one.rows.ends[i - 1]));
      }
    }
  }
}

// A block that was damaged anywhere is refused.
void check_block(const Model& model, Input& in) {
  std::vector<uint64_t> memory((model.block.size() + 7) / 8);
  auto* bytes = reinterpret_cast<std::byte*>(memory.data());
  std::memcpy(bytes, model.block.data(), model.block.size());
  const auto again = Model::open({bytes, model.block.size()}, nullptr);
  CHECK(again->settings == model.settings);
  for (int i = 0; i < 4; ++i) {
    const size_t at = (static_cast<size_t>(in.number()) << 16 | in.number()) % model.block.size();
    const auto bit = static_cast<std::byte>(1 << in.byte() % 8);
    bytes[at] ^= bit;
    bool refused = false;
    try {
      Model::open({bytes, model.block.size()}, nullptr);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
    bytes[at] ^= bit;
    try {
      Model::open({bytes, at}, nullptr);
      CHECK(false);
    } catch (const std::invalid_argument&) {
    }
  }
}

bool threads_only = false;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  const Tokenizer made = tokenizer_from(in);
  check_block(*made.model, in);
  const Spelled spelled(*made.bare);
  std::vector<Encoder> encoders, plain;
  for (Scan scan : scans()) {
    encoders.emplace_back(made.model, made.added, scan);
    plain.emplace_back(made.model, std::vector<Encoder::Added>{}, scan);
  }
  std::vector<std::unique_ptr<Scratch>> scratches;
  for (uint32_t bits : {0u, 1u, 3u, 9u}) scratches.push_back(std::make_unique<Scratch>(bits));
  std::vector<std::string> texts;
  while (!in.empty()) {
    const uint8_t kind = in.byte();
    const size_t count = kind < 16 ? in.number() % 3000 : kind % 40;
    texts.push_back((kind & 7) == 7 ? in.raw(count) : in.fragments(count));
  }
  if (!threads_only) {
    for (const std::string& text : texts) check_text(made, spelled, scratches, encoders, plain, text);
  }
  if (threads_only || texts.size() % 8 == 0) check_batches(made, encoders.back(), texts);
  return 0;
}

#ifndef FWP_LIBFUZZER
int main(int argc, char** argv) {
  size_t runs = 200;
  uint64_t seed = 0;
  bool files = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--runs" && i + 1 < argc) {
      runs = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--threads") {
      threads_only = true;
    } else {
      std::ifstream file(argv[i], std::ios::binary);
      const std::vector<char> data((std::istreambuf_iterator<char>(file)), {});
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(data.data()), data.size());
      files = true;
    }
  }
  if (files) return 0;
  size_t bytes = 0;
  for (size_t run = 0; run < runs; ++run) {
    std::mt19937_64 random(seed * 1000003 + run);
    std::vector<uint8_t> data(200 + random() % 3000);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    // The input that fails is left behind.
    std::ofstream("fuzz_core.input", std::ios::binary).write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
    LLVMFuzzerTestOneInput(data.data(), data.size());
    bytes += data.size();
  }
  std::remove("fuzz_core.input");
  std::printf("%zu inputs of %zu bytes in all, seed %llu: all ways agree\n", runs, bytes, static_cast<unsigned long long>(seed));
  return 0;
}
#endif
