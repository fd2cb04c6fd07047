// Runs the CPU kernels without torch: every kind of problem with every option, forward and
// backward, on one, two and three threads, whose results must be the same bits, and hold against
// the portable kernels and a plain double-precision forward. For sanitizers and emulators.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/capability.h"
#include "../../csrc/cpu/execution.h"

namespace mmer::cpu {
extern const KernelTable kernels_portable;
}

namespace {

using namespace mmer::cpu;

struct Threads {
  int count;

  template <class Work>
  void operator()(int64_t total, int64_t, const Work& work) const {
    std::vector<std::thread> threads;
    for (int n = 0; n < count; ++n) {
      const Range range{total * n / count, total * (n + 1) / count};
      if (range.begin < range.end) threads.emplace_back([&work, range] { work(range); });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

struct Case {
  const char* name;
  int64_t batch, heads, time_a, time_b, dim, value_dim;
  ElementType type = ElementType::float32;
  bool masks = false, times = false, dropout = false, broadcast = false;
  int64_t chunk_size = 0, lookback = 1, lookahead = 0;
  bool causal = false, summaries = false;
  int64_t first_query = -1;  // Of a stretch of a stream, whose keys are time_b steps.

  bool is_window() const { return first_query >= 0; }
};

const Case cases[] = {
    {"small", 2, 2, 5, 3, 8, 8},
    {"masks", 2, 2, 70, 90, 20, 7, ElementType::float32, true},
    {"times", 1, 2, 150, 90, 16, 16, ElementType::float32, true, true},
    {"dropout", 2, 1, 65, 130, 12, 5, ElementType::float32, true, true, true},
    {"one head, several groups", 1, 1, 1100, 260, 64, 64},
    {"groups with all options", 1, 1, 1030, 150, 40, 24, ElementType::float32, true, true, true},
    {"broadcast", 3, 2, 40, 50, 8, 8, ElementType::float32, false, false, false, true},
    {"bfloat16", 1, 2, 1100, 90, 64, 64, ElementType::bfloat16, true},
    {"float16", 2, 1, 90, 75, 33, 17, ElementType::float16, true, false, true},
    {"head_dim 256", 1, 1, 70, 40, 256, 256},
    {"one step", 1, 3, 1, 1, 1, 1},
    {"nothing", 1, 1, 0, 4, 8, 8},
    {"chunked", 1, 2, 1100, 0, 16, 16, ElementType::float32, false, false, false, false, 32},
    {"chunked, both sides", 2, 1, 300, 0, 8, 5, ElementType::float32, true, false, true, false, 16,
     2, 1},
    {"causal", 1, 1, 1300, 0, 24, 24, ElementType::float32, true, false, false, false, 100, 1, 0,
     true},
    {"summaries", 1, 1, 1100, 0, 16, 9, ElementType::float32, true, false, true, false, 7, 2, 0,
     false, true},
    {"single block", 1, 2, 50, 300, 40, 24, ElementType::float32, true},
    {"single block, times", 2, 1, 400, 33, 8, 8, ElementType::bfloat16, true, true},
    {"window", 2, 1, 40, 150, 16, 9, ElementType::float32, true, false, false, false, 150, 0, 0,
     true, true, 110},
    {"window in bfloat16", 1, 2, 90, 190, 64, 64, ElementType::bfloat16, false, false, false, false,
     190, 0, 0, false, true, 70},
    {"causal summaries in bfloat16", 2, 1, 1100, 0, 32, 32, ElementType::bfloat16, true, false,
     false, false, 64, 1, 0, true, true},
};

// A tensor (batch, heads, time, dim) of a type, and its values as they are in that type.
struct Array {
  int64_t batch, heads, time, dim;
  ElementType type;
  std::vector<unsigned char> bytes;

  Array(int64_t batch, int64_t heads, int64_t time, int64_t dim, ElementType type)
      : batch(batch),
        heads(heads),
        time(time),
        dim(dim),
        type(type),
        bytes(batch * heads * time * dim * size(), 0xFF) {}

  // 0xFF everywhere is NaN in every type: what a kernel forgets to write is seen.
  int64_t size() const { return type == ElementType::float32 ? 4 : 2; }

  TensorView view() {
    return {bytes.data(), type, {batch == 1 ? 0 : heads * time * dim, time * dim, dim, 1}};
  }

  int64_t count() const { return batch * heads * time * dim; }

  float get(int64_t n) const {
    if (type == ElementType::float32) {
      float x;
      std::memcpy(&x, bytes.data() + 4 * n, 4);
      return x;
    }
    uint16_t half;
    std::memcpy(&half, bytes.data() + 2 * n, 2);
    if (type == ElementType::bfloat16) {
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    }
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                       : std::ldexp(1024.0f + fraction, exponent - 25);
    return half & 0x8000 ? -size : size;
  }

  // Quarters up to 4: exact in every type.
  void fill(std::mt19937& random) {
    for (int64_t n = 0; n < count(); ++n) {
      const int quarters = static_cast<int>(random() % 17) - 6;
      const float x = 0.25f * quarters;
      if (type == ElementType::float32) {
        std::memcpy(bytes.data() + 4 * n, &x, 4);
        continue;
      }
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      uint16_t half = static_cast<uint16_t>(bits >> 16);
      if (type == ElementType::float16) {
        half = x == 0.0f ? 0
                         : static_cast<uint16_t>((bits >> 16 & 0x8000) |
                                                 (((bits >> 23 & 255) - 112) << 10) |
                                                 (bits >> 13 & 1023));
      }
      std::memcpy(bytes.data() + 2 * n, &half, 2);
    }
  }
};

// What one run wrote, by name.
struct Results {
  std::vector<std::pair<std::string, Array>> arrays;
  std::vector<double> grad_decay;
};

class Bench {
 public:
  explicit Bench(const Case& which) : case_(which), random_(7) {
    mask_a_ = mask(which.time_a);
    mask_b_ = mask(which.time_b);
    times_a_ = seconds(which.time_a);
    times_b_ = seconds(which.time_b);
    for (int64_t head = 0; head < which.heads; ++head) slopes_.push_back(0.2f + 0.1f * head);
  }

  Results shared(const KernelTable& kernels, Threads threads) {
    const Case& c = case_;
    random_.seed(1);
    Array qk_a = input(c.batch, c.time_a, c.dim), v_a = input(c.batch, c.time_a, c.value_dim);
    const int64_t batch_b = c.broadcast ? 1 : c.batch;
    Array qk_b = input(batch_b, c.time_b, c.dim), v_b = input(batch_b, c.time_b, c.value_dim);
    Array grad_a = input(c.batch, c.time_a, c.value_dim);
    Array grad_b = input(c.batch, c.time_b, c.value_dim);
    Array out_a = output(c.time_a, c.value_dim), out_b = output(c.time_b, c.value_dim);
    Array lse_a = floats(c.time_a, 1), lse_b = floats(c.time_b, 1);
    Array grad_qk_a = output(c.time_a, c.dim), grad_v_a = output(c.time_a, c.value_dim);
    Array grad_qk_b = wide(c.time_b, c.dim), grad_v_b = wide(c.time_b, c.value_dim);
    Side a = side(c.time_a, qk_a, v_a, out_a, lse_a, grad_a, grad_qk_a, grad_v_a, 0);
    Side b = side(c.time_b, qk_b, v_b, out_b, lse_b, grad_b, grad_qk_b, grad_v_b, 1);
    if (c.masks) a.mask = view(mask_a_, c.time_a), b.mask = view(mask_b_, c.time_b);
    if (c.times) a.times = view(times_a_, c.time_a), b.times = view(times_b_, c.time_b);
    SharedProblem problem = arrange(options(), a, b);
    run_forward(kernels, problem, threads);
    Results results;
    results.grad_decay.assign(task_count(problem.options), 0.0);
    if (c.times) problem.options.grad_decay = results.grad_decay.data();
    run_backward(kernels, problem, threads);
    if (c.broadcast) add_up(kernels, threads, results, grad_qk_b, grad_v_b);
    keep(results, {{"out_a", &out_a}, {"out_b", &out_b}, {"lse_a", &lse_a}, {"lse_b", &lse_b}});
    keep(results, {{"grad_qk_a", &grad_qk_a}, {"grad_qk_b", &grad_qk_b}});
    keep(results, {{"grad_v_a", &grad_v_a}, {"grad_v_b", &grad_v_b}});
    if (!c.dropout) check_forward(qk_a, qk_b, v_b, out_a, false);
    if (!c.dropout) check_forward(qk_b, qk_a, v_a, out_b, true);
    return results;
  }

  // One direction of bidirectional cross-attention or, with chunks, chunked attention.
  Results directed(const KernelTable& kernels, Threads threads) {
    const Case& c = case_;
    const bool chunked = c.chunk_size > 0;
    const int64_t keys = chunked && !c.is_window() ? c.time_a : c.time_b;
    const int64_t chunks = c.is_window() ? 5
                           : chunked     ? (c.time_a + c.chunk_size - 1) / c.chunk_size
                                         : 0;
    random_.seed(1);
    Array query = input(c.batch, c.time_a, c.dim), key = input(c.batch, keys, c.dim);
    Array value = input(c.batch, keys, c.value_dim), grad = input(c.batch, c.time_a, c.value_dim);
    Array summary_k = input(c.batch, chunks, c.dim),
          summary_v = input(c.batch, chunks, c.value_dim);
    Array out = output(c.time_a, c.value_dim), lse = floats(c.time_a, 1);
    Array grad_query = output(c.time_a, c.dim), grad_key = output(keys, c.dim);
    Array grad_value = output(keys, c.value_dim);
    Array grad_summary_k = output(chunks, c.dim), grad_summary_v = output(chunks, c.value_dim);
    DirectedProblem problem;
    problem.options = options();
    problem.options.timed = c.times && !chunked;
    problem.options.groups = group_count(problem.options, c.time_a);
    problem.time = c.time_a;
    problem.value_dim = c.value_dim;
    problem.query = query.view();
    problem.out = out.view();
    problem.lse = lse.view();
    problem.grad_out = grad.view();
    problem.grad_query = grad_query.view();
    Segment& tokens = problem.segments[0];
    tokens.time = keys;
    tokens.key = key.view();
    tokens.value = value.view();
    tokens.grad_key = grad_key.view();
    tokens.grad_value = grad_value.view();
    if (c.masks) problem.mask = view(mask_a_, c.time_a);
    if (c.masks) tokens.mask = keys == c.time_a ? problem.mask : view(mask_b_, c.time_b);
    if (problem.options.timed) {
      problem.times = view(times_a_, c.time_a);
      tokens.times = view(times_b_, c.time_b);
    }
    if (chunked) {
      problem.chunking = {c.chunk_size, c.lookback, c.lookahead, c.causal, chunks};
    }
    if (c.summaries) {
      problem.segment_count = 2;
      Segment& segment = problem.segments[1];
      segment.time = chunks;
      segment.stream = 1;
      segment.log_counts = true;
      segment.key = summary_k.view();
      segment.value = summary_v.view();
      segment.grad_key = grad_summary_k.view();
      segment.grad_value = grad_summary_v.view();
    }
    Results results;
    if (c.is_window()) {
      problem.chunking.first_query = c.first_query;
      problem.segments[1].first_chunk = -chunks;
      problem.segments[1].counts = {counts_, {chunks, 1}};
      run_forward(kernels, problem, threads);
      keep(results, {{"out", &out}, {"lse", &lse}});
      return results;
    }
    run_forward(kernels, problem, threads);
    results.grad_decay.assign(task_count(problem.options), 0.0);
    if (problem.options.timed) problem.options.grad_decay = results.grad_decay.data();
    run_backward(kernels, problem, threads);
    keep(results, {{"out", &out}, {"lse", &lse}, {"grad_query", &grad_query}});
    keep(results, {{"grad_key", &grad_key}, {"grad_value", &grad_value}});
    if (c.summaries) {
      keep(results, {{"grad_summary_k", &grad_summary_k}, {"grad_summary_v", &grad_summary_v}});
    }
    if (!c.dropout && !c.summaries) check_forward(query, key, value, out, false);
    return results;
  }

  bool failed() const { return failed_; }

 private:
  std::vector<char> mask(int64_t time) {
    std::vector<char> mask(case_.batch * time);
    for (char& real : mask) real = random_() % 10 < 7;
    return mask;
  }

  std::vector<float> seconds(int64_t time) {
    std::vector<float> times(case_.batch * time);
    for (float& x : times) x = static_cast<float>(random_() % 4096) / 1024.0f;
    return times;
  }

  static MaskView view(const std::vector<char>& mask, int64_t time) {
    return {reinterpret_cast<const bool*>(mask.data()), {time, 1}};
  }

  static TimesView view(const std::vector<float>& times, int64_t time) {
    return {times.data(), {time, 1}};
  }

  Array input(int64_t batch, int64_t time, int64_t dim) {
    Array array(batch, case_.heads, time, dim, case_.type);
    array.fill(random_);
    return array;
  }

  Array output(int64_t time, int64_t dim) const {
    return {case_.batch, case_.heads, time, dim, case_.type};
  }

  Array floats(int64_t time, int64_t dim) const {
    return {case_.batch, case_.heads, time, dim, ElementType::float32};
  }

  Array wide(int64_t time, int64_t dim) const {
    return case_.broadcast ? floats(time, dim) : output(time, dim);
  }

  Options options() const {
    Options options;
    options.batch = case_.batch;
    options.heads = case_.heads;
    options.head_dim = case_.dim;
    options.scale = 1.0f / std::sqrt(static_cast<float>(case_.dim));
    options.timed = case_.times;
    options.decay = case_.times ? slopes_.data() : nullptr;
    options.max_gap = case_.times ? 2.5f : 0.0f;
    if (case_.dropout) options.dropout = {true, -5, uint64_t{1} << 30, 4.0f / 3.0f};
    return options;
  }

  static Side side(int64_t time, Array& qk, Array& value, Array& out, Array& lse, Array& grad_out,
                   Array& grad_qk, Array& grad_value, uint32_t stream) {
    Side side;
    side.time = time;
    side.value_dim = value.dim;
    side.stream = stream;
    side.qk = qk.view();
    side.value = value.view();
    side.out = out.view();
    side.lse = lse.view();
    side.grad_out = grad_out.view();
    side.grad_qk = grad_qk.view();
    side.grad_value = grad_value.view();
    return side;
  }

  void add_up(const KernelTable& kernels, Threads threads, Results& results, Array& qk,
              Array& value) {
    for (Array* parts : {&qk, &value}) {
      Array sum(1, case_.heads, parts->time, parts->dim, case_.type);
      threads(case_.heads, 1, [&](Range heads) {
        kernels.sum_batch(parts->view(), sum.view(), case_.batch, parts->time, parts->dim, heads);
      });
      results.arrays.emplace_back("sum over the batch", sum);
    }
  }

  using Named = std::pair<const char*, const Array*>;

  static void keep(Results& results, std::initializer_list<Named> arrays) {
    for (const auto& [name, array] : arrays) results.arrays.emplace_back(name, *array);
  }

  bool sees(int64_t batch, int64_t i, int64_t j, bool from_b) const {
    const Case& c = case_;
    if (c.chunk_size > 0) {
      const int64_t apart = j / c.chunk_size - i / c.chunk_size;
      if (apart < -c.lookback || apart > (c.causal ? 0 : c.lookahead)) return false;
      if (c.causal && j > i) return false;
      return !c.masks || (mask_a_[batch * c.time_a + i] && mask_a_[batch * c.time_a + j]);
    }
    const int64_t a = from_b ? j : i, b = from_b ? i : j;
    if (c.masks && !(mask_a_[batch * c.time_a + a] && mask_b_[batch * c.time_b + b])) return false;
    return !c.times || gap(batch, a, b) <= 2.5f;
  }

  float gap(int64_t batch, int64_t a, int64_t b) const {
    return std::fabs(times_a_[batch * case_.time_a + a] - times_b_[batch * case_.time_b + b]);
  }

  // The forward in double precision, one query at a time, on some of the queries.
  void check_forward(const Array& query, const Array& key, const Array& value, const Array& out,
                     bool from_b) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(case_.dim));
    const double allowed = case_.type == ElementType::float32   ? 2e-5
                           : case_.type == ElementType::float16 ? 4e-3
                                                                : 4e-2;
    const int64_t stride = query.time > 200 ? 37 : 1;
    for (int64_t batch = 0; batch < out.batch; ++batch) {
      for (int64_t head = 0; head < out.heads; ++head) {
        const int64_t qh = (query.batch == 1 ? 0 : batch) * query.heads + head;
        const int64_t kh = (key.batch == 1 ? 0 : batch) * key.heads + head;
        for (int64_t i = 0; i < query.time; i += stride) {
          std::vector<double> weights(key.time, 0.0), sum(value.dim, 0.0);
          double largest = -INFINITY, total = 0.0;
          for (int64_t j = 0; j < key.time; ++j) {
            double score = -INFINITY;
            if (sees(batch, i, j, from_b)) {
              score = 0.0;
              for (int64_t k = 0; k < key.dim; ++k) {
                score += scale * query.get((qh * query.time + i) * query.dim + k) *
                         key.get((kh * key.time + j) * key.dim + k);
              }
              if (case_.times && case_.chunk_size == 0) {
                score -= slopes_[head] * gap(batch, from_b ? j : i, from_b ? i : j);
              }
            }
            weights[j] = score;
            largest = std::max(largest, score);
          }
          for (int64_t j = 0; j < key.time; ++j) {
            if (weights[j] == -INFINITY) continue;
            const double weight = std::exp(weights[j] - largest);
            total += weight;
            for (int64_t k = 0; k < value.dim; ++k) {
              sum[k] += weight * value.get((kh * value.time + j) * value.dim + k);
            }
          }
          for (int64_t k = 0; k < value.dim; ++k) {
            const double wanted = total > 0.0 ? sum[k] / total : 0.0;
            const double got = out.get(((batch * out.heads + head) * out.time + i) * out.dim + k);
            if (std::fabs(got - wanted) <= allowed * (1.0 + std::fabs(wanted))) continue;
            if (!failed_) {
              std::printf("%s: query %lld has %g, wanted %g\n", case_.name,
                          static_cast<long long>(i), got, wanted);
            }
            failed_ = true;
          }
        }
      }
    }
  }

  const Case& case_;
  std::mt19937 random_;
  std::vector<char> mask_a_, mask_b_;
  std::vector<float> times_a_, times_b_, slopes_;
  static constexpr int64_t counts_[10] = {3, 1, 0, 7, 7, 2, 0, 5, 1, 4};
  bool failed_ = false;
};

bool same_bits(const Results& x, const Results& y) {
  for (std::size_t n = 0; n < x.arrays.size(); ++n) {
    if (x.arrays[n].second.bytes != y.arrays[n].second.bytes) return false;
  }
  return x.grad_decay == y.grad_decay;
}

// Name of the first result that is further from the other kernels' than rounding explains.
std::string disagreement(const Results& x, const Results& y) {
  for (std::size_t n = 0; n < x.arrays.size(); ++n) {
    const Array &ours = x.arrays[n].second, &theirs = y.arrays[n].second;
    const bool is_float32 = ours.type == ElementType::float32 && theirs.type == ours.type;
    double largest = 1.0;
    for (int64_t k = 0; k < theirs.count(); ++k) {
      if (std::isfinite(theirs.get(k)))
        largest = std::max<double>(largest, std::fabs(theirs.get(k)));
    }
    for (int64_t k = 0; k < ours.count(); ++k) {
      const double a = ours.get(k), b = theirs.get(k);
      if (a == b) continue;
      if (!(std::fabs(a - b) <= (is_float32 ? 1e-4 : 3e-2) * largest)) return x.arrays[n].first;
    }
  }
  return "";
}

bool run(const Case& which, Results (Bench::*kind)(const KernelTable&, Threads), const char* name) {
  Bench bench(which);
  const KernelTable& chosen = kernels();
  const Results one = (bench.*kind)(chosen, {1});
  bool right = true;
  for (const int threads : {2, 3}) {
    if (same_bits(one, (bench.*kind)(chosen, {threads}))) continue;
    std::printf("%s, %s: other bits on %d threads\n", which.name, name, threads);
    right = false;
  }
  // With bfloat16 arithmetic, dropout and weights of other roundings, only float32 is comparable.
  const std::string differs = disagreement(one, (bench.*kind)(kernels_portable, {1}));
  if (!differs.empty()) {
    std::printf("%s, %s: %s is not that of the portable kernels\n", which.name, name,
                differs.c_str());
    right = false;
  }
  return right && !bench.failed();
}

}  // namespace

int main() {
  int failures = 0, runs = 0;
  for (const Case& which : cases) {
    ++runs;
    failures += !run(which, &Bench::directed, "directed");
    if (which.chunk_size > 0) continue;
    ++runs;
    failures += !run(which, &Bench::shared, "shared");
  }
  std::printf("%s: %d problems, %d failures\n", kernel_capability().c_str(), runs, failures);
  return failures != 0;
}
