// The Python face of the core: module chapbook.fast_wordpiece._core.
#define FWP_IMPORTS_NUMPY
#include "bind.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <span>

#include "core/scan.hpp"
#include "core/utf8.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace chapbook;
using namespace chapbook::bind;

void bind_arrow(nb::module_& m);
void bind_linmaxmatch(nb::module_& m);
void bind_train(nb::module_& m);

namespace {

// --------------------------------------------------------------------------------- strings in

// Keeps the strings of a sequence alive and offers their UTF-8, without copying where they hold it.
class Strings {
 public:
  Strings(nb::handle sequence, const char* what) : what_(what) {
    if (PyUnicode_Check(sequence.ptr())) {
      throw nb::type_error((std::string(what) + "s is one string; a list of strings is wanted").c_str());
    }
    PyObject* tuple = PySequence_Tuple(sequence.ptr());
    if (tuple == nullptr) rethrow();
    tuple_ = nb::steal(tuple);
    const Py_ssize_t n = PyTuple_Size(tuple);
    views.reserve(static_cast<size_t>(n));
    for (Py_ssize_t i = 0; i < n; ++i) add(PyTuple_GetItem(tuple, i), i);
  }

  // Rows of words.
  static Strings words(nb::handle rows, const char* what) {
    Strings all(what);
    PyObject* tuple = PySequence_Tuple(rows.ptr());
    if (tuple == nullptr) rethrow();
    all.tuple_ = nb::steal(tuple);
    all.splits.push_back(0);
    for (Py_ssize_t i = 0; i < PyTuple_Size(tuple); ++i) {
      PyObject* row = PyTuple_GetItem(tuple, i);
      if (PyUnicode_Check(row)) {
        throw nb::type_error((std::string(what) + " " + std::to_string(i) + " is a string; with is_pretokenized a list of words is wanted").c_str());
      }
      PyObject* words = PySequence_Tuple(row);
      if (words == nullptr) rethrow();
      all.rows_.push_back(nb::steal(words));
      for (Py_ssize_t j = 0; j < PyTuple_Size(words); ++j) {
        all.add(PyTuple_GetItem(words, j), i, j);
      }
      all.splits.push_back(static_cast<int64_t>(all.views.size()));
    }
    return all;
  }

  Texts texts() const { return {views, splits}; }

  std::vector<std::string_view> views;
  std::vector<int64_t> splits;

 private:
  explicit Strings(const char* what) : what_(what) {}

  void add(PyObject* object, Py_ssize_t row, Py_ssize_t word = -1) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
    if (data == nullptr) fail(object, row, word);
    views.emplace_back(data, static_cast<size_t>(size));
  }

  [[noreturn]] void fail(PyObject* object, Py_ssize_t row, Py_ssize_t word) const {
    const std::string place =
        std::string(what_) + " " + std::to_string(row) + (word < 0 ? "" : ", word " + std::to_string(word));
    if (!PyUnicode_Check(object)) {
      const auto type = nb::cast<std::string>(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(object))).attr("__name__"));
      throw nb::type_error((place + " is of type " + type + ", not str").c_str());
    }
    nb::python_error error;
    if (!error.matches(PyExc_UnicodeEncodeError)) throw error;
    const auto at = nb::cast<int64_t>(error.value().attr("start"));
    throw nb::value_error((place + " holds a lone surrogate at character " + std::to_string(at) +
                           "; mend it, or give errors=\"replace\"").c_str());
  }

  const char* what_;
  nb::object tuple_;
  std::vector<nb::object> rows_;
};

// ------------------------------------------------------------------------------------- objects

Scan scan_named(const std::string& isa) {
  if (isa == "auto") return scan_for(best_isa());
  const Isa wanted = isa == "scalar"   ? Isa::kScalar
                     : isa == "avx2"   ? Isa::kAvx2
                     : isa == "avx512" ? Isa::kAvx512
                                       : throw nb::value_error("the instruction sets are auto, scalar, avx2 and avx512");
  if (!has_isa(wanted)) throw nb::value_error(("this machine does not have " + isa).c_str());
  return scan_for(wanted);
}

SharedModel compile(nb::list pieces, nb::handle ids, const std::string& mark, int32_t unknown, uint32_t max_chars,
                    std::tuple<bool, bool, bool, bool, bool> normalizer, nb::bytes settings, bool literal_marks,
                    uint32_t cache_bits) {
  const Strings strings(pieces, "piece");
  std::vector<VocabPiece> vocab;
  vocab.reserve(strings.views.size());
  nb::object array = nb::steal(PyArray_FROMANY(ids.ptr(), NPY_INT32, 1, 1, NPY_ARRAY_CARRAY));
  if (!array.is_valid()) rethrow();
  auto* numbers = reinterpret_cast<PyArrayObject*>(array.ptr());
  if (static_cast<size_t>(PyArray_DIM(numbers, 0)) != strings.views.size()) throw nb::value_error("one id for each piece");
  const auto* data = static_cast<const int32_t*>(PyArray_DATA(numbers));
  for (size_t i = 0; i < strings.views.size(); ++i) vocab.push_back({strings.views[i], data[i]});
  ModelOptions options;
  std::tie(options.normalizer.clean_text, options.normalizer.handle_chinese_chars, options.normalizer.strip_accents,
           options.normalizer.lowercase, options.normalizer.tf_text) = normalizer;
  options.mark = mark;
  options.unknown = unknown;
  options.max_chars = max_chars;
  options.literal_marks = literal_marks;
  const std::string_view text(settings.c_str(), settings.size());
  nb::gil_scoped_release release;
  return {Model::compile(vocab, options, text), std::make_shared<ScratchPool>(cache_bits)};
}

SharedModel open_block(nb::object buffer, uint32_t cache_bits) {
  // A view of any object with the buffer protocol (a memory map, bytes); it keeps the object alive.
  nb::object array = nb::steal(PyArray_FROMANY(
      nb::module_::import_("numpy").attr("frombuffer")(buffer, "dtype"_a = "uint8").ptr(), NPY_UINT8, 1, 1, NPY_ARRAY_CARRAY_RO));
  if (!array.is_valid()) rethrow();
  auto* bytes = reinterpret_cast<PyArrayObject*>(array.ptr());
  const std::span<const std::byte> block(static_cast<const std::byte*>(PyArray_DATA(bytes)),
                                         static_cast<size_t>(PyArray_DIM(bytes, 0)));
  if (reinterpret_cast<uintptr_t>(block.data()) % 8 != 0) throw nb::value_error("the block must be aligned to 8 bytes");
  std::shared_ptr<const void> owner(array.release().ptr(), [](const void* p) {
    const nb::gil_scoped_acquire acquire;
    Py_DECREF(static_cast<PyObject*>(const_cast<void*>(p)));
  });
  return {Model::open(block, std::move(owner)), std::make_shared<ScratchPool>(cache_bits)};
}

const char* message(const TruncationError& e, std::string& out) {
  const std::string row = "text " + std::to_string(e.sample);
  const std::string a = std::to_string(e.a), b = std::to_string(e.b);
  switch (e.kind) {
    case TruncationError::kTooShort: out = "max_length " + a + " is less than the " + b + " tokens that the template adds"; break;
    case TruncationError::kNoSecond: out = row + ": the truncation strategy is only_second and there is no second text"; break;
    case TruncationError::kFirstTooShort: out = row + ": only_first truncation cannot take " + a + " tokens from a first text of " + b; break;
    case TruncationError::kSecondTooShort: out = row + ": only_second truncation cannot take " + a + " tokens from a second text of " + b; break;
    case TruncationError::kStride: out = row + ": stride " + a + " must be less than the " + b + " tokens of a window"; break;
  }
  return out.c_str();
}

nb::object encode_ids(SharedEncoder& self, nb::handle text, bool special) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (data == nullptr) {
    PyErr_Clear();
    nb::list one;
    one.append(text);
    Strings(one, "text");  // tells what is wrong
  }
  if (self.truncation.enabled || size > (1 << 16)) return nb::none();  // The batch path is for these.
  static const std::vector<Template::Piece> kBare{{Template::kFirst, 0}};
  thread_local Tokens tokens;
  tokens.clear();
  Borrowed scratch(*self.shared.pool);
  for (const Template::Piece& piece : special ? self.plan.single : kBare) {
    if (piece.kind == Template::kSpecial) {
      tokens.ids.push(piece.id);
    } else {
      self.encoder.encode(*scratch, reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(size), Wanted{}, tokens);
    }
  }
  npy_intp count = static_cast<npy_intp>(tokens.ids.size());
  PyObject* array = PyArray_SimpleNew(1, &count, NPY_INT32);
  if (array == nullptr) rethrow();
  if (count > 0) std::memcpy(PyArray_DATA(reinterpret_cast<PyArrayObject*>(array)), tokens.ids.data(), tokens.ids.size() * sizeof(int32_t));
  return nb::steal(array);
}

nb::tuple encode_batch(SharedEncoder& self, nb::handle first, nb::handle second, bool pretokenized, bool special,
                       bool offsets, bool words, bool bytes, bool overflow, unsigned threads) {
  auto strings = [&](nb::handle texts, const char* what) {
    return pretokenized ? Strings::words(texts, what) : Strings(texts, what);
  };
  const Strings a = strings(first, "text");
  const auto options = batch_options(self, special, offsets, words, bytes, overflow, threads);
  if (second.is_none()) return encode_rows(self, a.texts(), nullptr, options);
  const Strings b = strings(second, "pair");
  const Texts pairs = b.texts();
  if (pairs.size() != a.texts().size()) {
    throw nb::value_error(("there are " + std::to_string(a.texts().size()) + " texts and " + std::to_string(pairs.size()) + " pairs").c_str());
  }
  return encode_rows(self, a.texts(), &pairs, options);
}

nb::object count_batch(SharedEncoder& self, nb::handle texts, bool special, unsigned threads) {
  const Strings strings(texts, "text");
  auto options = batch_options(self, special, false, false, false, false, threads);
  options.count_only = true;
  Rows rows;
  {
    const nb::gil_scoped_release release;
    rows = BatchEncoder(self.encoder, self.plan, *self.shared.pool, options).encode(strings.texts(), nullptr);
  }
  return to_array(std::move(rows.ends));
}

// An array of one dimension, of this type and without gaps.
nb::object flat_array(nb::handle object, int type) {
  nb::object made = nb::steal(PyArray_FROMANY(object.ptr(), type, 1, 1, NPY_ARRAY_CARRAY_RO));
  if (!made.is_valid()) rethrow();
  return made;
}

template <class T>
std::span<const T> span_of(const nb::object& array) {
  auto* held = reinterpret_cast<PyArrayObject*>(array.ptr());
  return {static_cast<const T*>(PyArray_DATA(held)), static_cast<size_t>(PyArray_DIM(held, 0))};
}

// Texts that lie in a buffer of UTF-8, each from its start to its end; where `valid` is given, a 0
// there makes the text null.
nb::tuple encode_flat(SharedEncoder& self, nb::handle data, nb::handle starts, nb::handle ends, nb::handle valid,
                      bool special, bool offsets, bool words, bool bytes, bool overflow, unsigned threads) {
  const nb::object text = flat_array(data, NPY_UINT8);
  const nb::object begins = flat_array(starts, NPY_INT64), stops = flat_array(ends, NPY_INT64);
  const nb::object mask = valid.is_none() ? nb::object() : flat_array(valid, NPY_BOOL);
  const auto all = span_of<uint8_t>(text);
  const auto from = span_of<int64_t>(begins), to = span_of<int64_t>(stops);
  const auto is_valid = valid.is_none() ? std::span<const npy_bool>() : span_of<npy_bool>(mask);
  if (from.size() != to.size() || (!valid.is_none() && is_valid.size() != from.size())) {
    throw nb::value_error("one start, one end and one validity for each text");
  }
  const auto size = static_cast<int64_t>(all.size());
  std::vector<std::string_view> views(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i] < 0 || from[i] > to[i] || to[i] > size) throw nb::value_error("a text lies outside of the data");
    if (!is_valid.empty() && is_valid[i] == 0) continue;
    // An empty text is not null, even in an array without memory.
    const auto* place = all.empty() ? "" : reinterpret_cast<const char*>(all.data()) + from[i];
    views[i] = {place, static_cast<size_t>(to[i] - from[i])};
  }
  const auto options = batch_options(self, special, offsets, words, bytes, overflow, threads);
  return encode_rows(self, Texts{views, {}}, nullptr, options);
}

// Returns where the first byte stands that is not UTF-8, or -1.
int64_t first_invalid_utf8(nb::handle data) {
  const nb::object held = flat_array(data, NPY_UINT8);
  const auto bytes = span_of<uint8_t>(held);
  const nb::gil_scoped_release release;
  const size_t found = first_invalid(bytes.data(), bytes.size());
  return found == bytes.size() ? -1 : static_cast<int64_t>(found);
}

// Writes ragged rows into a rectangle of int32 or int64, each at its left or right end.
void fill_rows(nb::handle values, nb::handle bounds, nb::handle out, int64_t filling, bool at_right) {
  auto array = [](nb::handle object, int type) {
    nb::object made = nb::steal(PyArray_FROMANY(object.ptr(), type, 1, 1, NPY_ARRAY_CARRAY_RO));
    if (!made.is_valid()) rethrow();
    return made;
  };
  const nb::object from = array(values, NPY_INT32), ends = array(bounds, NPY_INT64);
  auto* rows = reinterpret_cast<PyArrayObject*>(out.ptr());
  if (!PyArray_Check(out.ptr()) || PyArray_NDIM(rows) != 2 || !PyArray_ISCARRAY(rows) || !PyArray_ISSIGNED(rows) ||
      (PyArray_ITEMSIZE(rows) != 4 && PyArray_ITEMSIZE(rows) != 8)) {
    throw nb::type_error("out must be a contiguous array of int32 or int64 with two dimensions");
  }
  const auto* numbers = static_cast<const int32_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(from.ptr())));
  const auto* limits = static_cast<const int64_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(ends.ptr())));
  const npy_intp size = PyArray_DIM(reinterpret_cast<PyArrayObject*>(from.ptr()), 0);
  const npy_intp count = PyArray_DIM(rows, 0), width = PyArray_DIM(rows, 1);
  if (PyArray_DIM(reinterpret_cast<PyArrayObject*>(ends.ptr()), 0) != count + 1) throw nb::value_error("one bound more than rows");
  for (npy_intp i = 0; i < count; ++i) {
    if (limits[i] < 0 || limits[i + 1] < limits[i] || limits[i + 1] > size || limits[i + 1] - limits[i] > width) {
      throw nb::value_error("the bounds do not fit the values and the width");
    }
  }
  auto fill = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    for (npy_intp i = 0; i < count; ++i, to += width) {
      const int32_t* const begin = numbers + limits[i];
      const npy_intp length = limits[i + 1] - limits[i], rest = width - length;
      T* const start = at_right ? std::fill_n(to, rest, static_cast<T>(filling)) : to;
      T* const end = std::copy_n(begin, length, start);
      if (!at_right) std::fill_n(end, rest, static_cast<T>(filling));
    }
  };
  const nb::gil_scoped_release release;
  if (PyArray_ITEMSIZE(rows) == 4) {
    fill(static_cast<int32_t*>(PyArray_DATA(rows)));
  } else {
    fill(static_cast<int64_t*>(PyArray_DATA(rows)));
  }
}

void* import_numpy() {
  import_array();
  return nullptr;
}

}  // namespace

NB_MODULE(_core, m) {
  import_numpy();
  if (PyErr_Occurred()) rethrow();
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const TruncationError& e) {
      std::string text;
      PyErr_SetString(PyExc_ValueError, message(e, text));
    } catch (const Stopped&) {
      if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
    }
  });

  nb::class_<SharedModel>(m, "Model")
      .def_prop_ro("settings", [](const SharedModel& self) { return nb::bytes(self.model->settings.data(), self.model->settings.size()); })
      .def_prop_ro("unknown", [](const SharedModel& self) { return self.model->unknown; })
      .def_prop_ro("block", [](const SharedModel& self) {
        return nb::bytes(reinterpret_cast<const char*>(self.model->block.data()), self.model->block.size());
      });
  m.def("compile", &compile, "pieces"_a, "ids"_a, "mark"_a, "unknown"_a, "max_chars"_a, "normalizer"_a, "settings"_a,
        "literal_marks"_a = false, "cache_bits"_a = WordCache::kDefaultBits);
  m.def("open", &open_block, "buffer"_a, "cache_bits"_a = WordCache::kDefaultBits);

  nb::class_<SharedEncoder>(m, "Encoder")
      .def("__init__",
           [](SharedEncoder* self, const SharedModel& model,
              const std::vector<std::tuple<std::string, int32_t, bool, bool, bool, bool, bool>>& added,
              const std::vector<std::pair<int, int32_t>>& single, const std::vector<std::pair<int, int32_t>>& pair,
              std::optional<std::tuple<size_t, size_t, int, bool>> truncation, bool trim, bool prefix_space,
              const std::string& isa) {
             std::vector<Encoder::Added> tokens;
             for (const auto& [content, id, normalized, single_word, lstrip, rstrip, literal] : added) {
               tokens.push_back({content, id, normalized, single_word, lstrip, rstrip, literal});
             }
             auto pieces = [](const std::vector<std::pair<int, int32_t>>& from) {
               std::vector<Template::Piece> to;
               for (const auto& [kind, id] : from) to.push_back({static_cast<Template::Kind>(kind), id});
               return to;
             };
             Truncation limits;
             if (truncation) {
               const auto& [max_length, stride, strategy, left] = *truncation;
               limits = {true, false, left, static_cast<Truncation::Strategy>(strategy), max_length, stride};
             }
             new (self) SharedEncoder{model, Encoder(model.model, tokens, scan_named(isa), trim, prefix_space),
                                      {pieces(single), pieces(pair)}, limits};
           },
           "model"_a, "added"_a, "single"_a, "pair"_a, "truncation"_a = nb::none(), "trim"_a = false,
           "prefix_space"_a = false, "isa"_a = "auto")
      .def("encode_ids", &encode_ids, "text"_a.none(), "add_special_tokens"_a = true)
      .def("encode_batch", &encode_batch, "texts"_a, "pairs"_a.none(), "pretokenized"_a, "special"_a, "offsets"_a,
           "words"_a, "bytes"_a, "overflow"_a, "threads"_a)
      .def("count_batch", &count_batch, "texts"_a, "special"_a, "threads"_a)
      .def("encode_flat", &encode_flat, "data"_a, "starts"_a, "ends"_a, "valid"_a.none(), "special"_a, "offsets"_a,
           "words"_a, "bytes"_a, "overflow"_a, "threads"_a);

  m.def("fill_rows", &fill_rows, "values"_a, "bounds"_a, "out"_a, "filling"_a, "at_right"_a);
  m.def("first_invalid_utf8", &first_invalid_utf8, "data"_a);
  m.def("instruction_sets", [] {
    std::vector<std::string> names{"scalar"};
    if (has_isa(Isa::kAvx2)) names.emplace_back("avx2");
    if (has_isa(Isa::kAvx512)) names.emplace_back("avx512");
    return names;
  });
  m.attr("NO_ID") = kNoId;
  bind_arrow(m);
  bind_linmaxmatch(m);
  bind_train(m);
}
