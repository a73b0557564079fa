// Arrow's C data interface: columns of texts in, and lists out, both without copies.
// https://arrow.apache.org/docs/format/CDataInterface.html
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "utf8.hpp"

extern "C" {

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  int64_t flags;
  int64_t n_children;
  struct ArrowSchema** children;
  struct ArrowSchema* dictionary;
  void (*release)(struct ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void** buffers;
  struct ArrowArray** children;
  struct ArrowArray* dictionary;
  void (*release)(struct ArrowArray*);
  void* private_data;
};

#endif  // ARROW_C_DATA_INTERFACE

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
  int (*get_schema)(struct ArrowArrayStream*, struct ArrowSchema* out);
  int (*get_next)(struct ArrowArrayStream*, struct ArrowArray* out);
  const char* (*get_last_error)(struct ArrowArrayStream*);
  void (*release)(struct ArrowArrayStream*);
  void* private_data;
};

#endif  // ARROW_C_STREAM_INTERFACE
}

namespace chapbook {

// Owns one of these structs: releases it once, unless somebody has moved it out before.
template <class T>
class Held {
 public:
  Held() = default;
  explicit Held(T& from) : value_(from) { from.release = nullptr; }
  Held(Held&& other) noexcept : Held(other.value_) {}
  Held& operator=(Held&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Held() {
    if (value_.release != nullptr) value_.release(&value_);
  }

  T* get() { return &value_; }
  T* operator->() { return &value_; }
  const T* operator->() const { return &value_; }
  const T& operator*() const { return value_; }

  // Hands the struct over to `to`, which is raw memory or released.
  void move_to(T* to) {
    *to = value_;
    value_.release = nullptr;
  }

 private:
  T value_{};
};

// ------------------------------------------------------------------------------------ texts in

struct TextFormat {
  enum Layout : uint8_t { kBounds32, kBounds64, kViews, kNulls };
  Layout layout;
  bool binary;  // not known to be UTF-8, as Arrow's strings are
};

// Returns how a column keeps its texts, or nothing if it is no column of texts.
inline std::optional<TextFormat> text_format(const ArrowSchema& schema) {
  const std::string_view format = schema.format;
  if (schema.dictionary != nullptr) return std::nullopt;  // the format is that of the indices
  if (format == "u" || format == "z") return TextFormat{TextFormat::kBounds32, format == "z"};
  if (format == "U" || format == "Z") return TextFormat{TextFormat::kBounds64, format == "Z"};
  if (format == "vu" || format == "vz") return TextFormat{TextFormat::kViews, format == "vz"};
  if (format == "n") return TextFormat{TextFormat::kNulls, false};
  return std::nullopt;
}

// Arrow recommends aligned buffers and does not promise them.
template <class T>
T load(const void* base, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Reads chunks of texts into views that point into them; a null is a view without data. Throws
// std::invalid_argument, with the row, where a chunk is not what it says.
class TextReader {
 public:
  explicit TextReader(TextFormat format) : format_(format) {}

  void add(const ArrowArray& chunk) {
    if (chunk.length == 0) return;  // Its buffers may be missing.
    const int64_t least = format_.layout == TextFormat::kNulls ? 0 : 3;
    if (chunk.length < 0 || chunk.offset < 0 || chunk.n_buffers < least) fail("is in a chunk that is malformed");
    const auto* bitmap = least == 0 || chunk.null_count == 0 ? nullptr : static_cast<const uint8_t*>(chunk.buffers[0]);
    for (int64_t i = chunk.offset; i < chunk.offset + chunk.length; ++i) {
      const bool valid = bitmap == nullptr || (bitmap[i >> 3] >> (i & 7) & 1) != 0;
      if (!valid || format_.layout == TextFormat::kNulls) {
        texts.emplace_back();
        any_null = true;
        continue;
      }
      const std::string_view text = format_.layout == TextFormat::kViews      ? view(chunk, i)
                                    : format_.layout == TextFormat::kBounds32 ? between<int32_t>(chunk, i)
                                                                              : between<int64_t>(chunk, i);
      if (format_.binary) check(text);
      texts.push_back(text);
    }
  }

  std::vector<std::string_view> texts;
  bool any_null = false;

 private:
  template <class Bound>
  std::string_view between(const ArrowArray& chunk, int64_t i) const {
    const auto begin = load<Bound>(chunk.buffers[1], i), end = load<Bound>(chunk.buffers[1], i + 1);
    if (begin < 0 || end < begin) fail("has bounds that run backwards");
    return text_at(chunk.buffers[2], begin, end - begin);
  }

  std::string_view view(const ArrowArray& chunk, int64_t i) const {
    constexpr int64_t kViewBytes = 16, kInline = 12;
    const char* view = static_cast<const char*>(chunk.buffers[1]) + kViewBytes * i;
    const auto length = load<int32_t>(view, 0);
    if (length < 0) fail("has a negative length");
    if (length <= kInline) return {view + 4, static_cast<size_t>(length)};
    const auto buffer = load<int32_t>(view, 2), at = load<int32_t>(view, 3);
    // Behind the validity, the views and the data comes the size of each buffer of data.
    const int64_t count = chunk.n_buffers - 3;
    if (buffer < 0 || buffer >= count || at < 0 ||
        int64_t{at} + length > load<int64_t>(chunk.buffers[chunk.n_buffers - 1], buffer)) {
      fail("lies outside of its buffer");
    }
    return text_at(chunk.buffers[2 + buffer], at, length);
  }

  std::string_view text_at(const void* data, int64_t at, int64_t length) const {
    if (length == 0) return "";  // There may be no data, and a view without data is a null.
    if (data == nullptr) fail("has no data");
    return {static_cast<const char*>(data) + at, static_cast<size_t>(length)};
  }

  void check(std::string_view text) const {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    const size_t bad = first_invalid(bytes, text.size());
    if (bad < text.size()) fail("is not UTF-8 at byte " + std::to_string(bad));
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument("row " + std::to_string(texts.size()) + " of the Arrow data " + what);
  }

  TextFormat format_;
};

// ------------------------------------------------------------------------------------ lists out

// What an exported array points to. Children may be moved out and outlive their parent, so each
// array holds on to the owner of the memory by itself.
struct ArrayParts {
  std::shared_ptr<const void> owner;
  std::vector<const void*> buffers;
  std::vector<Held<ArrowArray>> children;
  std::vector<ArrowArray*> pointers;
};

struct SchemaParts {
  std::vector<Held<ArrowSchema>> children;
  std::vector<ArrowSchema*> pointers;
};

// Gives `exported` the children in `parts`, and `parts` to own.
template <class T, class Parts>
Held<T> with_parts(T exported, std::unique_ptr<Parts> parts) {
  for (auto& child : parts->children) parts->pointers.push_back(child.get());
  exported.n_children = static_cast<int64_t>(parts->pointers.size());
  exported.children = parts->pointers.data();
  exported.release = [](T* self) {
    delete static_cast<Parts*>(self->private_data);
    self->release = nullptr;
  };
  exported.private_data = parts.release();
  return Held<T>(exported);
}

inline Held<ArrowArray> make_array(std::shared_ptr<const void> owner, int64_t length, int64_t null_count,
                                   std::vector<const void*> buffers, std::vector<Held<ArrowArray>> children = {}) {
  auto parts = std::make_unique<ArrayParts>(ArrayParts{std::move(owner), std::move(buffers), std::move(children), {}});
  ArrowArray array{};
  array.length = length;
  array.null_count = null_count;
  array.n_buffers = static_cast<int64_t>(parts->buffers.size());
  array.buffers = parts->buffers.data();
  return with_parts(array, std::move(parts));
}

// `format` and `name` are literals.
inline Held<ArrowSchema> make_schema(const char* format, const char* name, std::vector<Held<ArrowSchema>> children = {}) {
  ArrowSchema schema{};
  schema.format = format;
  schema.name = name;
  schema.flags = ARROW_FLAG_NULLABLE;
  return with_parts(schema, std::make_unique<SchemaParts>(SchemaParts{std::move(children), {}}));
}

template <class T, class... More>
std::vector<Held<T>> children(Held<T>&& first, More&&... more) {
  std::vector<Held<T>> all;
  all.push_back(std::move(first));
  (all.push_back(std::move(more)), ...);
  return all;
}

// Lists of token ids (int32), or of offsets (structs of start and end, uint32), in memory that
// `owner` keeps.
struct ListColumn {
  std::shared_ptr<const void> owner;
  int64_t rows = 0;
  int64_t nulls = 0;
  const uint8_t* bitmap = nullptr;  // none where no row is null
  const int64_t* bounds = nullptr;  // rows + 1 of them
  int64_t size = 0;                 // elements of all rows
  const int32_t* ids = nullptr;     // or else:
  const uint32_t *starts = nullptr, *ends = nullptr;

  Held<ArrowSchema> schema() const {
    auto item = ids != nullptr
                    ? make_schema("i", "item")
                    : make_schema("+s", "item", children(make_schema("I", "start"), make_schema("I", "end")));
    return make_schema("+L", "", children(std::move(item)));
  }

  Held<ArrowArray> array() const {
    auto numbers = [this](const void* data) { return make_array(owner, size, 0, {nullptr, data}); };
    auto items = ids != nullptr
                     ? numbers(ids)
                     : make_array(owner, size, 0, {nullptr}, children(numbers(starts), numbers(ends)));
    return make_array(owner, rows, nulls, {bitmap, bounds}, children(std::move(items)));
  }

  // Returns the column as a stream of one chunk.
  Held<ArrowArrayStream> stream() const;
};

struct ListStream {
  ListColumn column;
  bool done = false;

  static ListStream& of(ArrowArrayStream* self) { return *static_cast<ListStream*>(self->private_data); }

  // Returns 0, or what keeps `make` from making something for `out`.
  template <class T, class Make>
  static int give(T* out, Make&& make) {
    try {
      make().move_to(out);
      return 0;
    } catch (const std::bad_alloc&) {
      return ENOMEM;
    }
  }
};

inline Held<ArrowArrayStream> ListColumn::stream() const {
  ArrowArrayStream stream{};
  stream.get_schema = [](ArrowArrayStream* self, ArrowSchema* out) {
    return ListStream::give(out, [&] { return ListStream::of(self).column.schema(); });
  };
  stream.get_next = [](ArrowArrayStream* self, ArrowArray* out) {
    ListStream& state = ListStream::of(self);
    return ListStream::give(out, [&] {
      auto next = state.done ? Held<ArrowArray>() : state.column.array();
      state.done = true;
      return next;
    });
  };
  stream.get_last_error = [](ArrowArrayStream*) -> const char* { return nullptr; };
  stream.release = [](ArrowArrayStream* self) {
    delete &ListStream::of(self);
    self->release = nullptr;
  };
  stream.private_data = new ListStream{*this};
  return Held<ArrowArrayStream>(stream);
}

}  // namespace chapbook
