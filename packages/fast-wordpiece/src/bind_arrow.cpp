// Arrow's PyCapsule interface: columns of texts from any library, and lists of tokens to any.
// https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind.hpp"
#include "core/arrow.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace chapbook;
using namespace chapbook::bind;

namespace {

template <class T>
inline constexpr const char* kCapsule = nullptr;
template <>
inline constexpr const char* kCapsule<ArrowSchema> = "arrow_schema";
template <>
inline constexpr const char* kCapsule<ArrowArray> = "arrow_array";
template <>
inline constexpr const char* kCapsule<ArrowArrayStream> = "arrow_array_stream";

// ------------------------------------------------------------------------------------ texts in

// Takes what a capsule holds.
template <class T>
Held<T> taken(nb::handle capsule) {
  auto* held = static_cast<T*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule<T>));
  if (held == nullptr) rethrow();
  if (held->release == nullptr) throw nb::value_error("the Arrow data has been consumed already");
  return Held<T>(*held);
}

TextFormat checked_format(const ArrowSchema& schema) {
  if (const auto format = text_format(schema)) return *format;
  if (schema.dictionary != nullptr) {
    throw nb::type_error("the Arrow data is dictionary-encoded (a categorical column); cast it to strings");
  }
  throw nb::type_error(("the Arrow data is of format \"" + std::string(schema.format) +
                        "\", and texts are utf8, large_utf8 or string_view, or binary that holds UTF-8").c_str());
}

// A column of texts, which keeps the memory that the texts lie in.
class TextColumn {
 public:
  explicit TextColumn(nb::handle source) {
    if (nb::hasattr(source, "__arrow_c_array__")) {
      const nb::object pair = source.attr("__arrow_c_array__")();
      const auto schema = taken<ArrowSchema>(nb::object(pair[0]));
      chunks_.push_back(taken<ArrowArray>(nb::object(pair[1])));
      read(checked_format(*schema));
    } else if (nb::hasattr(source, "__arrow_c_stream__")) {
      auto stream = taken<ArrowArrayStream>(nb::object(source.attr("__arrow_c_stream__")()));
      const TextFormat format = drain(stream.get());
      read(format);
    } else {
      const nb::str type(source.type().attr("__name__"));
      throw nb::type_error(("texts must be an Arrow array or stream, such as a Polars Series or an array of pyarrow, not " +
                            std::string(type.c_str())).c_str());
    }
  }

  const std::vector<std::string_view>& texts() const { return texts_; }

  // Returns which rows hold a text, or None if all do.
  nb::object validity() const {
    if (!any_null_) return nb::none();
    Buffer<uint8_t> valid;
    valid.resize(texts_.size());
    for (size_t i = 0; i < texts_.size(); ++i) valid[i] = texts_[i].data() != nullptr;
    return wrap(valid.release(), NPY_BOOL, static_cast<npy_intp>(texts_.size()));
  }

 private:
  // Reads all chunks of a stream. Its producer may need other threads that want the GIL.
  TextFormat drain(ArrowArrayStream* stream) {
    Held<ArrowSchema> schema;
    {
      const nb::gil_scoped_release release;
      require(stream, stream->get_schema(stream, schema.get()));
    }
    const TextFormat format = checked_format(*schema);
    const nb::gil_scoped_release release;
    for (;;) {
      Held<ArrowArray> chunk;
      require(stream, stream->get_next(stream, chunk.get()));
      if (chunk->release == nullptr) return format;
      chunks_.push_back(std::move(chunk));
    }
  }

  static void require(ArrowArrayStream* stream, int code) {
    if (code == 0) return;
    const char* reason = stream->get_last_error(stream);
    throw std::runtime_error("the Arrow stream failed: " + std::string(reason == nullptr ? std::strerror(code) : reason));
  }

  void read(TextFormat format) {
    const nb::gil_scoped_release release;
    TextReader reader(format);
    int64_t rows = 0;
    for (const Held<ArrowArray>& chunk : chunks_) rows += std::max<int64_t>(chunk->length, 0);
    reader.texts.reserve(static_cast<size_t>(rows));
    for (const Held<ArrowArray>& chunk : chunks_) reader.add(*chunk);
    // A batch numbers its texts by 32 bits.
    if (reader.texts.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      throw std::invalid_argument("there are " + std::to_string(reader.texts.size()) +
                                  " texts; encode at most 2147483647 at once");
    }
    texts_ = std::move(reader.texts);
    any_null_ = reader.any_null;
  }

  std::vector<Held<ArrowArray>> chunks_;
  std::vector<std::string_view> texts_;
  bool any_null_ = false;
};

nb::object encode_arrow(SharedEncoder& encoder, nb::handle texts, bool special, bool offsets, bool words, bool bytes,
                        bool overflow, unsigned threads) {
  const TextColumn column(texts);
  const auto options = batch_options(encoder, special, offsets, words, bytes, overflow, threads);
  const nb::tuple rows = encode_rows(encoder, Texts{column.texts(), {}}, nullptr, options);
  return rows + nb::make_tuple(column.validity());
}

// Returns the number of tokens of each text, 0 where it is null.
nb::object count_arrow(SharedEncoder& encoder, nb::handle texts, bool special, unsigned threads) {
  const TextColumn column(texts);
  auto options = batch_options(encoder, special, false, false, false, false, threads);
  options.count_only = true;
  Rows rows;
  {
    const nb::gil_scoped_release release;
    rows = BatchEncoder(encoder.encoder, encoder.plan, *encoder.shared.pool, options).encode({column.texts(), {}}, nullptr);
  }
  return to_array(std::move(rows.ends));
}

// ------------------------------------------------------------------------------------ lists out

// What an exported list points to.
struct Kept {
  std::vector<nb::object> arrays;
  Buffer<uint8_t> bitmap;
};

// Consumers let go on any thread, and may do so after Python has ended.
void drop(Kept* kept) {
  if (!Py_IsInitialized()) return;
  const nb::gil_scoped_acquire acquire;
  delete kept;
}

class ArrowList {
 public:
  ArrowList(nb::handle values, nb::handle bounds, nb::handle valid) : kept_(new Kept, drop) {
    PyArrayObject* ends = keep(bounds, NPY_INT64);
    if (PyArray_DIM(ends, 0) == 0) throw nb::value_error("bounds hold one more number than there are rows");
    column_.bounds = static_cast<const int64_t*>(PyArray_DATA(ends));
    column_.rows = PyArray_DIM(ends, 0) - 1;
    keep_values(values);
    check_bounds();
    if (!valid.is_none()) keep_validity(valid);
    column_.owner = kept_;
  }

  const ListColumn& column() const { return column_; }

 private:
  // Keeps an array of one dimension; it is copied only where its memory has gaps or another type.
  PyArrayObject* keep(nb::handle object, int type) {
    PyObject* array = PyArray_FROMANY(object.ptr(), type, 1, 1, NPY_ARRAY_CARRAY_RO);
    if (array == nullptr) rethrow();
    kept_->arrays.push_back(nb::steal(array));
    return reinterpret_cast<PyArrayObject*>(array);
  }

  void keep_values(nb::handle values) {
    if (!PyArray_Check(values.ptr())) throw nb::type_error("values must be a NumPy array");
    auto* array = reinterpret_cast<PyArrayObject*>(values.ptr());
    if (PyArray_NDIM(array) != 2) {
      PyArrayObject* ids = keep(values, NPY_INT32);
      column_.ids = static_cast<const int32_t*>(PyArray_DATA(ids));
      column_.size = PyArray_DIM(ids, 0);
      return;
    }
    if (PyArray_DIM(array, 1) != 2) throw nb::value_error("offsets have two columns, start and end");
    auto column_at = [&](int i) {
      const nb::object column = values[nb::make_tuple(nb::slice(nb::none(), nb::none(), nb::none()), i)];
      return static_cast<const uint32_t*>(PyArray_DATA(keep(column, NPY_UINT32)));
    };
    column_.starts = column_at(0);
    column_.ends = column_at(1);
    column_.size = PyArray_DIM(array, 0);
  }

  void check_bounds() const {
    const int64_t* bounds = column_.bounds;
    bool fit = bounds[0] >= 0 && bounds[column_.rows] <= column_.size;
    for (int64_t i = 0; i < column_.rows; ++i) fit &= bounds[i] <= bounds[i + 1];
    if (!fit) throw nb::value_error("bounds must rise from 0 to at most the number of values");
  }

  void keep_validity(nb::handle object) {
    const nb::object array = nb::steal(PyArray_FROMANY(object.ptr(), NPY_BOOL, 1, 1, NPY_ARRAY_CARRAY_RO));
    if (!array.is_valid()) rethrow();
    auto* valid = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (PyArray_DIM(valid, 0) != column_.rows) throw nb::value_error("validity holds one value for each row");
    const auto* is_valid = static_cast<const npy_bool*>(PyArray_DATA(valid));
    Buffer<uint8_t>& bitmap = kept_->bitmap;
    bitmap.resize(static_cast<size_t>(column_.rows + 7) / 8);
    std::fill(bitmap.begin(), bitmap.end(), uint8_t{0});
    for (int64_t i = 0; i < column_.rows; ++i) {
      if (is_valid[i]) {
        bitmap[static_cast<size_t>(i >> 3)] |= static_cast<uint8_t>(1 << (i & 7));
      } else {
        ++column_.nulls;
      }
    }
    if (column_.nulls > 0) column_.bitmap = bitmap.data();
  }

  std::shared_ptr<Kept> kept_;
  ListColumn column_;
};

template <class T>
nb::capsule to_capsule(Held<T>&& held) {
  auto* moved = new T;
  held.move_to(moved);
  return nb::capsule(moved, kCapsule<T>, [](void* pointer) noexcept {
    auto* held = static_cast<T*>(pointer);
    if (held->release != nullptr) held->release(held);
    delete held;
  });
}

}  // namespace

void bind_arrow(nb::module_& m) {
  m.def("encode_arrow", &encode_arrow, "encoder"_a, "texts"_a, "special"_a, "offsets"_a, "words"_a, "bytes"_a, "overflow"_a,
        "threads"_a);
  m.def("count_arrow", &count_arrow, "encoder"_a, "texts"_a, "special"_a, "threads"_a);
  // Arrow lets a producer pass over `requested_schema`: consumers cast where they must.
  nb::class_<ArrowList>(m, "ArrowList")
      .def(nb::init<nb::handle, nb::handle, nb::handle>(), "values"_a, "bounds"_a, "valid"_a = nb::none())
      .def("__len__", [](const ArrowList& self) { return self.column().rows; })
      .def("__arrow_c_schema__", [](const ArrowList& self) { return to_capsule(self.column().schema()); })
      .def("__arrow_c_array__",
           [](const ArrowList& self, nb::handle) {
             return nb::make_tuple(to_capsule(self.column().schema()), to_capsule(self.column().array()));
           },
           "requested_schema"_a = nb::none())
      .def("__arrow_c_stream__", [](const ArrowList& self, nb::handle) { return to_capsule(self.column().stream()); },
           "requested_schema"_a = nb::none());
}
