// A compiled vocabulary: one block of memory, which is also what a .fwp file holds.
//
// Layout: Header, then sections, each aligned to 64 bytes. All numbers are in the byte order of the
// machine that wrote them; the header tells.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "charmap.hpp"
#include "properties.hpp"
#include "trie.hpp"
#include "utf8.hpp"

namespace chapbook {

inline constexpr int32_t kNoId = -1;
inline constexpr int32_t kMaxId = (1 << 24) - 1;

struct VocabPiece {
  std::string_view text;
  int32_t id;
};

struct ModelOptions {
  NormalizerOptions normalizer;
  std::string mark = "##";
  int32_t unknown = kNoId;
  uint32_t max_chars = 100;
  // For words that come as they are: no character ends a word, and any may hold the mark.
  bool literal_marks = false;
};

// A 64-bit checksum of a block (four multiply-and-rotate lanes over 32 bytes).
inline uint64_t checksum(const std::byte* data, size_t size) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15ull;
  uint64_t lanes[4] = {1, 2, 3, 4};
  auto mix = [](uint64_t lane, uint64_t value) {
    lane = (lane ^ value) * kPrime;
    return lane << 29 | lane >> 35;
  };
  size_t i = 0;
  for (; i + 32 <= size; i += 32) {
    uint64_t words[4];
    std::memcpy(words, data + i, 32);
    for (int k = 0; k < 4; ++k) lanes[k] = mix(lanes[k], words[k]);
  }
  uint64_t sum = size;
  for (; i < size; ++i) sum = mix(sum, static_cast<uint64_t>(data[i]));
  for (uint64_t lane : lanes) sum = mix(sum, lane);
  return sum;
}

class Model {
 public:
  static std::shared_ptr<const Model> compile(const std::vector<VocabPiece>& pieces,
                                              const ModelOptions& options, std::string_view settings);

  // Takes over a block that compile() made. `owner` keeps `block` alive where it is not owned.
  static std::shared_ptr<const Model> open(std::span<const std::byte> block,
                                           std::shared_ptr<const void> owner);

  TrieView trie;
  CharMapView raw;     // characters of the text
  CharMapView normal;  // characters that are normalised already
  NormalizerOptions normalizer;
  bool literal_marks = false;
  int32_t unknown = kNoId;
  uint32_t max_chars = 100;
  uint32_t mark_chars = 0;
  std::span<const uint16_t> piece_chars;  // by id: characters without the mark, and kMarked
  std::string_view settings;
  std::span<const std::byte> block;

  // Returns how many characters of a word a piece stands for. At the start of a word, the mark is
  // part of what a piece is spelled like.
  uint32_t chars_of(int32_t id, bool at_start) const {
    if (static_cast<size_t>(id) >= piece_chars.size()) return 0;
    const uint32_t chars = piece_chars[static_cast<size_t>(id)];
    return (chars & ~kMarked) + (at_start && (chars & kMarked) != 0 ? mark_chars : 0);
  }

 private:
  enum Section { kNodes, kPool, kRawPages, kNormalPages, kEntries, kSeveral, kPieceChars, kSettings, kSections };

  struct Header {
    char magic[8];
    uint32_t byte_order;
    uint32_t version;
    uint64_t sum;  // of all that follows this field
    uint64_t size;
    int32_t unknown;
    uint32_t max_chars;
    int32_t suffix_root;
    uint8_t clean_text, handle_chinese_chars, strip_accents, lowercase, tf_text, literal_marks, mark_chars;
    uint8_t unused[1];
    uint64_t offsets[kSections];
    uint64_t sizes[kSections];
  };
  static constexpr char kMagic[8] = {'C', 'H', 'B', 'K', 'F', 'W', 'P', '\n'};
  static constexpr uint32_t kByteOrder = 0x01020304;
  static constexpr uint32_t kVersion = 1;
  static constexpr size_t kAlign = 64;
  static constexpr uint32_t kMarked = 0x8000;
  static constexpr size_t kSummedFrom = offsetof(Header, size);

  template <class T>
  std::span<const T> section(const Header& header, Section which) const {
    const uint64_t offset = header.offsets[which], size = header.sizes[which];
    if (offset % kAlign != 0 || offset > block.size() || size > block.size() - offset || size % sizeof(T) != 0) {
      throw std::invalid_argument("its sections lie outside the file");
    }
    return {reinterpret_cast<const T*>(block.data() + offset), static_cast<size_t>(size) / sizeof(T)};
  }

  std::shared_ptr<const void> owner_;
};

inline std::shared_ptr<const Model> Model::compile(const std::vector<VocabPiece>& pieces,
                                                   const ModelOptions& options,
                                                   std::string_view settings) {
  // The characters of all pieces one behind the other, which then become symbols in place.
  std::vector<uint32_t> text;
  struct Spelling {
    size_t begin, length;  // without the mark
    size_t mark;           // characters of the mark before that
    int32_t id;
  };
  std::vector<Spelling> spellings;
  spellings.reserve(pieces.size());
  std::vector<uint16_t> chars;
  Symbols symbols;
  const std::u32string mark = to_utf32(options.mark);
  const size_t mark_length = mark.size();
  if (mark_length > 255) throw std::length_error("the mark has more than 255 characters");
  // Pieces with the mark also match as they are spelled, at the start of a word. BERT's pre-tokeniser
  // cuts at `#`, so most often no word holds the mark, or a word is no more than it.
  const bool mark_in_words =
      options.literal_marks || std::none_of(mark.begin(), mark.end(), [](char32_t c) {
        return Properties::get().is(c, Properties::kWhiteSpace | Properties::kPunctuation);
      });
  for (const VocabPiece& piece : pieces) {
    if (piece.id < 0 || piece.id > kMaxId) throw std::length_error("ids go from 0 to 16777215");
    const size_t begin = text.size();
    const auto* p = reinterpret_cast<const uint8_t*>(piece.text.data());
    for (const auto* end = p + piece.text.size(); p < end;) {
      const Decoded d = decode(p, end);
      text.push_back(d.cp);
      p += d.bytes;
    }
    const size_t marked = piece.text.starts_with(options.mark) ? mark_length : 0;
    const size_t length = text.size() - begin - marked;
    if (length > 255) throw std::length_error("a piece has more than 255 characters");
    if (static_cast<size_t>(piece.id) >= chars.size()) chars.resize(static_cast<size_t>(piece.id) + 1);
    chars[static_cast<size_t>(piece.id)] = static_cast<uint16_t>(length | (marked > 0 ? kMarked : 0));
    spellings.push_back({begin + marked, length, marked, piece.id});
    for (size_t i = begin + marked; i < text.size(); ++i) symbols.count(text[i]);
  }
  for (char32_t c : mark) symbols.count(c);
  symbols.number();
  for (uint32_t& c : text) c = symbols[c];
  std::vector<TriePiece> initial, continuing;
  for (const Spelling& each : spellings) {
    const auto spelled = [&](size_t before) {
      return TriePiece{{text.data() + each.begin - before, each.length + before}, each.id};
    };
    const bool continues = each.mark > 0 || mark_length == 0;
    if (continues && each.length > 0) continuing.push_back(spelled(0));
    const bool literal = each.mark > 0 && (mark_in_words || each.mark + each.length == 1);
    if (each.mark == 0 ? each.length > 0 : literal) {
      initial.push_back(spelled(each.mark));
    }
  }
  TrieBuilder trie(std::move(initial), std::move(continuing), mark_length == 0, symbols.size());
  const TrieView view(trie.nodes, trie.pool, trie.suffix_root);
  const CharMapBuilder map(symbols, view, options.unknown, options.max_chars, options.normalizer,
                           options.literal_marks);

  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.byte_order = kByteOrder;
  header.version = kVersion;
  header.unknown = options.unknown;
  header.max_chars = options.max_chars;
  header.suffix_root = trie.suffix_root;
  header.clean_text = options.normalizer.clean_text;
  header.handle_chinese_chars = options.normalizer.handle_chinese_chars;
  header.strip_accents = options.normalizer.strip_accents;
  header.lowercase = options.normalizer.lowercase;
  header.tf_text = options.normalizer.tf_text;
  header.literal_marks = options.literal_marks;
  header.mark_chars = static_cast<uint8_t>(mark_length);
  const std::span<const std::byte> sections[kSections] = {
      std::as_bytes(std::span(trie.nodes)),     std::as_bytes(std::span(trie.pool)),
      std::as_bytes(std::span(map.raw_pages)),  std::as_bytes(std::span(map.normal_pages)),
      std::as_bytes(std::span(map.entries)),    std::as_bytes(std::span(map.pool)),
      std::as_bytes(std::span(chars)),          std::as_bytes(std::span(settings)),
  };
  auto aligned = [](size_t n) { return (n + kAlign - 1) / kAlign * kAlign; };
  size_t size = aligned(sizeof(Header));
  for (int i = 0; i < kSections; ++i) {
    header.offsets[i] = size;
    header.sizes[i] = sections[i].size();
    size = aligned(size + sections[i].size());
  }
  header.size = size;
  struct alignas(kAlign) Line {
    std::byte bytes[kAlign];
  };
  auto memory = std::make_shared<std::vector<Line>>(size / kAlign, Line{});
  auto* data = reinterpret_cast<std::byte*>(memory->data());
  for (int i = 0; i < kSections; ++i) {
    if (!sections[i].empty()) std::memcpy(data + header.offsets[i], sections[i].data(), sections[i].size());
  }
  std::memcpy(data, &header, sizeof header);
  header.sum = checksum(data + kSummedFrom, size - kSummedFrom);
  std::memcpy(data, &header, sizeof header);
  return open({data, size}, memory);
}

inline std::shared_ptr<const Model> Model::open(std::span<const std::byte> block,
                                                std::shared_ptr<const void> owner) {
  Header header;
  if (block.size() < sizeof header) throw std::invalid_argument("it is shorter than a header");
  std::memcpy(&header, block.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) throw std::invalid_argument("it is no .fwp file");
  if (header.byte_order != kByteOrder) throw std::invalid_argument("it was written on a machine of another byte order");
  if (header.version != kVersion) {
    throw std::invalid_argument("it has version " + std::to_string(header.version) + ", this reads version " +
                                std::to_string(kVersion));
  }
  if (header.size != block.size()) throw std::invalid_argument("it is cut short");
  if (header.sum != checksum(block.data() + kSummedFrom, block.size() - kSummedFrom)) {
    throw std::invalid_argument("its checksum does not hold");
  }
  auto model = std::make_shared<Model>();
  model->block = block;
  model->owner_ = std::move(owner);
  model->trie = TrieView(model->section<Node>(header, kNodes), model->section<int32_t>(header, kPool), header.suffix_root);
  const auto entries = model->section<uint32_t>(header, kEntries);
  const auto several = model->section<uint32_t>(header, kSeveral);
  model->raw = CharMapView(model->section<uint16_t>(header, kRawPages), entries, several);
  model->normal = CharMapView(model->section<uint16_t>(header, kNormalPages), entries, several);
  model->normalizer = {header.clean_text != 0, header.handle_chinese_chars != 0, header.strip_accents != 0,
                       header.lowercase != 0, header.tf_text != 0};
  model->literal_marks = header.literal_marks != 0;
  model->mark_chars = header.mark_chars;
  model->unknown = header.unknown;
  model->max_chars = header.max_chars;
  model->piece_chars = model->section<uint16_t>(header, kPieceChars);
  const auto text = model->section<char>(header, kSettings);
  model->settings = {text.data(), text.size()};
  return model;
}

}  // namespace chapbook
