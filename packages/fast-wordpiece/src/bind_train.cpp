// Python's way to src/core/word_counts.hpp and src/core/train.hpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/normalize.hpp"
#include "core/train.hpp"
#include "core/word_counts.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Lets Python see to Ctrl-C, and to `progress` where there is one, while its lock is released.
class Poll {
 public:
  explicit Poll(nb::handle progress = {}) : progress_(progress) {}
  void operator()(uint64_t done = 0) const {
    const nb::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (progress_.is_valid()) progress_(done);
  }

 private:
  nb::handle progress_;
};

// Runs without Python's lock; what the system refuses becomes an OSError that names the file.
template <class Work>
void unlocked(Work&& work) {
  try {
    const nb::gil_scoped_release release;
    work();
  } catch (const std::system_error& problem) {
    // what() is "PATH: REASON", as CountsFile throws it.
    std::string path = problem.what();
    path.resize(path.size() - problem.code().message().size() - 2);
    errno = problem.code().value();
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    throw nb::python_error();
  }
}

// Words are counted as one normaliser makes them.
struct Counter {
  chapbook::WordCounts counts;
  chapbook::NormalizerOptions options;
};

chapbook::CountsSources open_all(const std::vector<std::string>& paths) {
  chapbook::CountsSources sources;
  for (const std::string& path : paths) {
    sources.push_back(std::make_unique<chapbook::FileSource>(path));
  }
  return sources;
}

void write_merged(const chapbook::CountsSources& sources, const std::string& path) {
  chapbook::CountsWriter writer(path);
  chapbook::merge_counts(sources, writer, Poll());
  writer.close();
}

}  // namespace

void bind_train(nb::module_& m) {
  nb::exception<chapbook::DamagedCounts>(m, "DamagedCounts");

  nb::class_<Counter>(m, "WordCounts")
      .def(
          "__init__",
          [](Counter* self, size_t threads, bool clean_text, bool handle_chinese_chars,
             bool strip_accents, bool lowercase, bool tf_text) {
            new (self) Counter{
                chapbook::WordCounts(threads),
                {clean_text, handle_chinese_chars, strip_accents, lowercase, tf_text}};
          },
          "threads"_a, nb::kw_only(), "clean_text"_a, "handle_chinese_chars"_a,
          "strip_accents"_a, "lowercase"_a, "tf_text"_a)
      .def_prop_ro("bytes", [](const Counter& self) { return self.counts.bytes(); })
      .def(
          "add",
          [](Counter& self, nb::bytes text) {
            const std::string_view view(text.c_str(), text.size());
            auto make_reader = [&self] {
              return [&self, normalized = chapbook::NormalizedText()](
                         std::string_view stretch, auto&& on_word) mutable {
                chapbook::each_word(stretch, self.options, normalized, on_word);
              };
            };
            unlocked([&] { self.counts.add(view, make_reader, Poll()); });
          },
          "text"_a)
      .def(
          "write",
          [](const Counter& self, const std::string& path) {
            unlocked([&] { write_merged(self.counts.sources(Poll()), path); });
          },
          "path"_a)
      .def("clear", [](Counter& self) { self.counts.clear(); });

  m.def(
      "merge_counts",
      [](const std::vector<std::string>& paths, const std::string& out) {
        unlocked([&] { write_merged(open_all(paths), out); });
      },
      "paths"_a, "out"_a);

  m.def(
      "train_bpe",
      [](Counter& counter, const std::vector<std::string>& paths, size_t vocab_size,
         uint64_t min_frequency, const std::vector<std::string>& special_tokens,
         size_t limit_alphabet, const std::string& initial_alphabet, const std::string& mark,
         nb::callable progress) {
        const chapbook::TrainOptions options{
            vocab_size,     min_frequency, special_tokens,
            limit_alphabet, chapbook::to_utf32(initial_alphabet), mark};
        chapbook::Trained trained;
        chapbook::WordList words;
        unlocked([&] {
          {
            chapbook::CountsSources sources = counter.counts.sources(Poll());
            for (auto& file : open_all(paths)) sources.push_back(std::move(file));
            chapbook::merge_counts(sources, words, Poll());
          }
          counter.counts.clear();  // The merges need the memory.
          trained = chapbook::train_bpe(words, options, Poll(progress));
        });
        return nb::make_tuple(trained.pieces, trained.special_tokens, trained.alphabet,
                              words.size());
      },
      "counter"_a, "paths"_a, "vocab_size"_a, "min_frequency"_a, "special_tokens"_a,
      "limit_alphabet"_a, "initial_alphabet"_a, "mark"_a, "progress"_a);
}
