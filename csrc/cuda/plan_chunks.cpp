#include "plan_chunks.h"

namespace mmer::cuda {

float* plan_counts(std::vector<Plan>& plans, const ChunkedCall& call, const Shape& shape,
                   const Chunks& chunks, const Allocate& allocate) {
  const int64_t count = shape.batch * chunks.count;
  float* log_counts = static_cast<float*>(allocate(count * sizeof(float)));
  const ChunkCountProblem problem{
      steps_of(call.tokens.mask),           log_counts,  static_cast<int32_t>(shape.batch),
      position(call.tokens.query.shape[2]), chunks.size, chunks.count};
  plans.push_back(small_plan(KernelRole::chunk_counts, call.options.element, count, problem));
  return log_counts;
}

SequenceView summaries_of(const ChunkedCall& call) {
  SequenceView summaries;
  summaries.key = call.summary_key;
  summaries.value = call.summary_value;
  return summaries;
}

}  // namespace mmer::cuda
