#include "program/operators/slicing.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <unordered_map>
#include <utility>

namespace torch_ext::program {
namespace {

using Shape = std::vector<std::int64_t>;

// What rules ask of a call. Answers that are not known make a rule say no.
class Asked {
 public:
  Asked(const Call& call, int dimension) : call_(call), dimension_(dimension) {}

  int dimension() const { return dimension_; }
  int rank() const { return static_cast<int>(call_.result.size()); }
  std::int64_t size() const { return call_.result[dimension_]; }
  const Shape& result() const { return call_.result; }
  const auto& shapes() const { return call_.shapes; }

  const Shape* Of(const std::string& name) const {
    const auto found = call_.shapes.find(name);
    return found == call_.shapes.end() ? nullptr : &found->second;
  }
  int RankOf(const std::string& name) const {
    const Shape* shape = Of(name);
    return shape == nullptr ? -1 : static_cast<int>(shape->size());
  }

  template <typename T>
  std::optional<T> Constant(const std::string& name) const {
    const auto found = call_.constants.find(name);
    if (found == call_.constants.end()) return std::nullopt;
    const T* value = std::get_if<T>(&found->second);
    return value == nullptr ? std::nullopt : std::optional(*value);
  }
  bool Is(const std::string& name, bool expected) const { return Constant<bool>(name) == expected; }
  // A dimension given as an argument, counted from the front.
  std::optional<int> Dimension(const std::string& name, int rank) const {
    const auto value = Constant<std::int64_t>(name);
    if (!value) return std::nullopt;
    return static_cast<int>(*value < 0 ? *value + rank : *value);
  }
  std::optional<std::set<int>> Dimensions(const std::string& name, int rank) const {
    const auto values = Constant<std::vector<std::int64_t>>(name);
    if (!values) return std::nullopt;
    std::set<int> dimensions;
    for (const std::int64_t value : *values) {
      dimensions.insert(static_cast<int>(value < 0 ? value + rank : value));
    }
    return dimensions;
  }

 private:
  const Call& call_;
  int dimension_;
};

using Answer = std::optional<Slicing>;

Answer Same(const std::string& argument, int dimension) {
  return Slicing{.needs = {{argument, {.dimension = dimension}}}};
}

Answer SameIf(bool holds, const std::string& argument, int dimension) {
  return holds ? Same(argument, dimension) : std::nullopt;
}

Answer Elementwise(const Asked& call) {
  return Same("self", call.dimension());
}

// The argument lies below the last dimensions of the result.
void AddBroadcast(const Asked& call, const std::string& name, Slicing& slicing) {
  const Shape* shape = call.Of(name);
  if (shape == nullptr) return;
  const int dimension = call.dimension() - (call.rank() - static_cast<int>(shape->size()));
  if (dimension >= 0 && (*shape)[dimension] == call.size()) {
    slicing.needs.push_back({name, {.dimension = dimension}});
  }
}

Answer Broadcast(const Asked& call) {
  Slicing slicing;
  for (const auto& [name, shape] : call.shapes()) AddBroadcast(call, name, slicing);
  return slicing.needs.empty() ? Answer() : slicing;
}

Answer BatchNorm(const Asked& call) {
  if (!call.Is("training", false)) return std::nullopt;
  Answer slicing = Same("input", call.dimension());
  slicing->minds_runs = true;
  slicing->runs_from = 2;  // planes are computed one by one
  if (call.dimension() != 1) return slicing;
  for (const char* name : {"weight", "bias", "running_mean", "running_var"}) {
    if (call.Of(name) != nullptr) slicing->needs.push_back({name, {.dimension = 0}});
  }
  return slicing;
}

Answer LayerNorm(const Asked& call) {
  const auto normalized = call.Constant<std::vector<std::int64_t>>("normalized_shape");
  if (!normalized) return std::nullopt;
  const int outer = call.rank() - static_cast<int>(normalized->size());
  return SameIf(call.dimension() < outer, "input", call.dimension());
}

Answer FirstOnly(const Asked& call, const std::string& argument) {
  return SameIf(call.dimension() == 0, argument, 0);
}

// Along the dimension of an argument lines depend on each other.
Answer AcrossDimension(const Asked& call) {
  const auto along = call.Dimension("dim", call.rank());
  return SameIf(along && *along != call.dimension(), "self", call.dimension());
}

std::optional<std::int64_t> At(const std::optional<std::vector<std::int64_t>>& list,
                               std::size_t place) {
  if (!list || list->empty()) return std::nullopt;
  if (list->size() == 1) return (*list)[0];
  return place < list->size() ? std::optional((*list)[place]) : std::nullopt;
}

// A window moves over the argument; `spatial` is the dimension, counted without batch and channels.
Answer Window(const Asked& call, const std::string& argument, std::size_t spatial,
              std::int64_t kernel, const std::optional<std::vector<std::int64_t>>& strides) {
  const auto paddings = call.Constant<std::vector<std::int64_t>>("padding");
  const auto dilations = call.Constant<std::vector<std::int64_t>>("dilation");
  const auto stride = At(strides, spatial), padding = At(paddings, spatial);
  const std::int64_t dilation = At(dilations, spatial).value_or(1);
  if (!stride || !padding) return std::nullopt;
  Slicing slicing{.needs = {{argument,
                             {.dimension = call.dimension(),
                              .step = *stride,
                              .before = *padding,
                              .extent = dilation * (kernel - 1) + 1}}}};
  if (*padding > 0) {
    if (paddings->size() == 1 && call.rank() > 3) return std::nullopt;  // one number for all
    slicing.padding = "padding";
    slicing.padding_place = paddings->size() == 1 ? 0 : spatial;
  }
  return slicing;
}

Answer Convolution(const Asked& call) {
  const Shape* weight = call.Of("weight");
  if (weight == nullptr || call.RankOf("input") != static_cast<int>(weight->size()) ||
      call.rank() != static_cast<int>(weight->size()) ||
      call.Constant<bool>("transposed").value_or(false)) {
    return std::nullopt;
  }
  const int dimension = call.dimension();
  if (dimension == 0) return Same("input", 0);
  if (dimension == 1) {
    const auto groups = call.Constant<std::int64_t>("groups");
    const bool is_by_channel = groups == call.size() && call.RankOf("input") > 1 &&
                               (*call.Of("input"))[1] == call.size();  // depthwise
    if (groups != 1 && !is_by_channel) return std::nullopt;
    Answer slicing = Same("weight", 0);
    if (call.Of("bias") != nullptr) slicing->needs.push_back({"bias", {.dimension = 0}});
    if (groups == 1) return slicing;
    slicing->needs.push_back({"input", {.dimension = 1}});
    slicing->size = "groups";
    return slicing;
  }
  return Window(call, "input", dimension - 2, (*weight)[dimension],
                call.Constant<std::vector<std::int64_t>>("stride"));
}

// By `ceil_mode` the last window ends behind the argument: that of the last part does so, too.
Answer Pool(const Asked& call) {
  const auto kernels = call.Constant<std::vector<std::int64_t>>("kernel_size");
  auto strides = call.Constant<std::vector<std::int64_t>>("stride");
  const int spatial = call.dimension() - (call.rank() - 2);
  if (spatial < 0) return Same("self", call.dimension());
  if (!kernels) return std::nullopt;
  if (strides && strides->empty()) strides = kernels;
  const auto kernel = At(kernels, spatial);
  return kernel ? Window(call, "self", spatial, *kernel, strides) : std::nullopt;
}

// The last two dimensions are computed together.
Answer Planes(const Asked& call, const std::string& argument) {
  return SameIf(call.dimension() < call.rank() - 2, argument, call.dimension());
}

Answer Linear(const Asked& call) {
  if (call.dimension() < call.rank() - 1) return Same("input", call.dimension());
  Answer slicing = Same("weight", 0);
  if (call.Of("bias") != nullptr) slicing->needs.push_back({"bias", {.dimension = 0}});
  return slicing;
}

Answer Product(const Asked& call, const std::string& left, const std::string& right) {
  const int left_rank = call.RankOf(left), right_rank = call.RankOf(right);
  if (left_rank < 2 || right_rank < 2) return std::nullopt;
  if (call.dimension() == call.rank() - 2) return Same(left, left_rank - 2);
  if (call.dimension() == call.rank() - 1) return Same(right, right_rank - 1);
  Slicing slicing;
  AddBroadcast(call, left, slicing);
  AddBroadcast(call, right, slicing);
  return slicing;
}

Answer AddedProduct(const Asked& call) {
  Answer slicing = Product(call, "mat1", "mat2");
  if (slicing) AddBroadcast(call, "self", *slicing);
  return slicing;
}

Answer Attention(const Asked& call) {
  const Shape* query = call.Of("query");
  if (query == nullptr || call.dimension() == call.rank() - 1 ||
      call.Constant<double>("dropout_p") != 0.0 || call.Constant<bool>("enable_gqa") == true) {
    return std::nullopt;
  }
  Slicing slicing;
  AddBroadcast(call, "attn_mask", slicing);
  if (call.dimension() == call.rank() - 2) {
    if (!call.Is("is_causal", false)) return std::nullopt;
    // The last dimension of a mask may be as large as this one.
    slicing.needs.push_back({"query", {.dimension = call.dimension()}});
    return slicing;
  }
  for (const char* name : {"query", "key", "value"}) AddBroadcast(call, name, slicing);
  return slicing;
}

// One sample after the other; in other dimensions keys need what queries are, whole.
Answer ProjectedAttention(const Asked& call) {
  if (call.Of("mask") != nullptr || call.dimension() != 0) return std::nullopt;
  Slicing slicing;
  for (const char* name : {"query", "key", "value"}) {
    slicing.needs.push_back({name, {.dimension = 0}});
  }
  return slicing;
}

Answer Reduced(const Asked& call) {
  const int rank = call.RankOf("self");
  const auto dimensions = call.Dimensions("dim", rank);
  const auto keeps = call.Constant<bool>("keepdim");
  if (!dimensions || dimensions->empty() || !keeps) return std::nullopt;
  int left = call.dimension();
  for (int dimension = 0; dimension < rank; ++dimension) {
    const bool is_reduced = dimensions->contains(dimension);
    if (is_reduced && !*keeps) continue;
    if (left-- == 0) return SameIf(!is_reduced, "self", dimension);
  }
  return std::nullopt;
}

Answer Transpose(const Asked& call) {
  const auto a = call.Dimension("dim0", call.rank()), b = call.Dimension("dim1", call.rank());
  if (!a || !b) return std::nullopt;
  const int dimension = call.dimension();
  return Same("self", dimension == *a ? *b : dimension == *b ? *a : dimension);
}

Answer Permute(const Asked& call) {
  const auto dimensions = call.Constant<std::vector<std::int64_t>>("dims");
  if (!dimensions || static_cast<int>(dimensions->size()) != call.rank()) return std::nullopt;
  const std::int64_t dimension = (*dimensions)[call.dimension()];
  return Same("self", static_cast<int>(dimension < 0 ? dimension + call.rank() : dimension));
}

Answer Unsqueeze(const Asked& call) {
  const auto added = call.Dimension("dim", call.rank());
  if (!added || *added == call.dimension()) return std::nullopt;
  return Same("self", call.dimension() - (call.dimension() > *added ? 1 : 0));
}

// One dimension of the argument is gone.
Answer Without(const Asked& call) {
  const int rank = call.RankOf("self");
  const auto gone = call.Dimension("dim", rank);
  if (!gone || rank != call.rank() + 1) return std::nullopt;
  return Same("self", call.dimension() + (call.dimension() >= *gone ? 1 : 0));
}

// Both dimensions start at the same place in the sequence of all elements; one may be a multiple of
// the other, with the dimensions that follow it.
Answer View(const Asked& call, const std::string& sizes) {
  const Shape* from = call.Of("self");
  if (from == nullptr) return std::nullopt;
  std::int64_t before = 1;
  for (int i = 0; i < call.dimension(); ++i) before *= call.result()[i];
  int dimension = 0;
  for (std::int64_t product = 1; dimension < static_cast<int>(from->size()); ++dimension) {
    if (product == before && (*from)[dimension] > 1) break;
    product *= (*from)[dimension];
    if (product > before) return std::nullopt;
  }
  if (dimension == static_cast<int>(from->size())) return std::nullopt;
  const std::int64_t size = (*from)[dimension];
  Need need{.dimension = dimension};
  if (size % call.size() == 0) {
    need.step = need.extent = size / call.size();
  } else if (call.size() % size == 0) {
    need.per = call.size() / size;
  } else {
    return std::nullopt;
  }
  Slicing slicing{.needs = {{"self", need}}};
  if (sizes.empty()) return slicing;
  const auto list = call.Constant<std::vector<std::int64_t>>(sizes);
  if (!list || static_cast<int>(list->size()) != call.rank()) return std::nullopt;
  if ((*list)[call.dimension()] < 0) return slicing;
  slicing.sizes = sizes;
  slicing.sizes_place = call.dimension();
  return slicing;
}

Answer Expand(const Asked& call) {
  Slicing slicing;
  AddBroadcast(call, "self", slicing);
  const auto list = call.Constant<std::vector<std::int64_t>>("size");
  if (!list || static_cast<int>(list->size()) != call.rank()) return std::nullopt;
  if ((*list)[call.dimension()] < 0) return slicing;
  slicing.sizes = "size";
  slicing.sizes_place = call.dimension();
  return slicing;
}

Answer Concatenate(const Asked& call) {
  const auto along = call.Dimension("dim", call.rank());
  return SameIf(along && *along != call.dimension(), "tensors", call.dimension());
}

Answer Stack(const Asked& call) {
  const auto along = call.Dimension("dim", call.rank());
  if (!along || *along == call.dimension()) return std::nullopt;
  return Same("tensors", call.dimension() - (call.dimension() > *along ? 1 : 0));
}

Answer Embedding(const Asked& call) {
  return SameIf(call.dimension() < call.rank() - 1, "indices", call.dimension());
}

// Each index is looked up in its own line.
Answer Gather(const Asked& call) {
  const auto along = call.Dimension("dim", call.rank());
  if (!along || call.RankOf("self") != call.rank()) return std::nullopt;
  Answer slicing = Same("index", call.dimension());
  if (call.dimension() != *along)
    slicing->needs.push_back({"self", {.dimension = call.dimension()}});
  return slicing;
}

// Of a row only that of its target is not zero.
Answer LossGradient(const Asked& call) {
  if (call.rank() != 2 || call.dimension() != 0) return std::nullopt;
  Slicing slicing{.needs = {{"self", {.dimension = 0}}, {"target", {.dimension = 0}}}};
  if (call.RankOf("grad_output") == 1) slicing.needs.push_back({"grad_output", {.dimension = 0}});
  return slicing;
}

Answer Roll(const Asked& call) {
  const auto along = call.Dimensions("dims", call.rank());
  return SameIf(along && !along->empty() && !along->contains(call.dimension()), "self",
                call.dimension());
}

Answer Pad(const Asked& call) {
  const auto pad = call.Constant<std::vector<std::int64_t>>("pad");
  if (!pad) return std::nullopt;
  const int outer = call.rank() - static_cast<int>(pad->size() / 2);
  return SameIf(call.dimension() < outer, "self", call.dimension());
}

using Rule = std::function<Answer(const Asked&)>;

Rule MindingRuns(const Rule& rule) {
  return [rule](const Asked& call) {
    Answer slicing = rule(call);
    if (slicing) slicing->minds_runs = true;
    return slicing;
  };
}

// With a factor it is one rounding or two.
Answer Sum(const Asked& call) {
  const bool has_factor = call.Constant<std::int64_t>("alpha").value_or(1) != 1 ||
                          call.Constant<double>("alpha").value_or(1) != 1;
  return has_factor ? MindingRuns(Broadcast)(call) : Broadcast(call);
}

// Lines of the last dimension are computed one by one, those of others side by side.
Answer Softmax(const Asked& call) {
  const auto along = call.Dimension("dim", call.rank());
  const bool is_apart = along && (*along == call.rank() - 1 || call.dimension() < *along);
  return is_apart ? AcrossDimension(call) : std::nullopt;
}

Answer SoftmaxGradient(const Asked& call) {
  if (!Softmax(call)) return std::nullopt;
  Answer slicing = Same("grad_output", call.dimension());
  slicing->needs.push_back({"output", {.dimension = call.dimension()}});
  return slicing;
}

const std::unordered_map<std::string, Rule>& Rules() {
  static const std::unordered_map<std::string, Rule> kRules = [] {
    std::unordered_map<std::string, Rule> rules;
    const auto add = [&](const char* name, const Rule& rule) {
      rules.emplace(std::string("aten::") + name, rule);
    };
    // Exactly rounded, or by the same code for vectors and single elements.
    for (const char* name :
         {"abs", "alias",    "clone",      "contiguous", "detach",      "erf",
          "exp", "_to_copy", "hardswish",  "hardtanh",   "hardsigmoid", "leaky_relu",
          "log", "neg",      "reciprocal", "relu",       "relu6",       "rsqrt",
          "sin", "sqrt",     "square",     "tanh"}) {
      add(name, Elementwise);
    }
    for (const char* name : {"cos", "elu", "gelu", "mish", "sigmoid", "silu", "softplus"}) {
      add(name, MindingRuns(Elementwise));
    }
    for (const char* name : {"add", "sub", "rsub"}) add(name, Sum);
    for (const char* name : {"mul", "div", "where", "masked_fill", "clamp", "clamp_min", "eq", "ne",
                             "lt", "le", "gt", "ge"}) {
      add(name, Broadcast);
    }
    for (const char* name : {"maximum", "minimum", "pow", "gelu_backward", "hardsigmoid_backward",
                             "hardswish_backward", "leaky_relu_backward", "sigmoid_backward",
                             "silu_backward", "tanh_backward", "threshold_backward"}) {
      add(name, MindingRuns(Broadcast));
    }
    for (const char* name : {"dropout", "feature_dropout"}) {
      add(name, [](const Asked& call) {
        return SameIf(call.Is("train", false), "input", call.dimension());
      });
    }
    add("batch_norm", BatchNorm);
    add("layer_norm", LayerNorm);
    add("group_norm", [](const Asked& call) { return FirstOnly(call, "input"); });
    for (const char* name : {"softmax", "log_softmax", "_softmax", "_log_softmax"}) {
      add(name, Softmax);
    }
    for (const char* name : {"_softmax_backward_data", "_log_softmax_backward_data"}) {
      add(name, SoftmaxGradient);
    }
    add("nll_loss_backward", LossGradient);
    add("cumsum", AcrossDimension);
    for (const char* name : {"conv1d", "conv2d", "convolution", "_convolution"}) {
      add(name, Convolution);
    }
    for (const char* name : {"max_pool2d", "avg_pool2d"}) add(name, Pool);
    for (const char* name : {"adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d"}) {
      add(name, [](const Asked& call) { return Planes(call, "self"); });
    }
    add("linear", Linear);
    add("matmul", [](const Asked& call) { return Product(call, "self", "other"); });
    for (const char* name : {"mm", "bmm"}) {
      add(name, [](const Asked& call) { return Product(call, "self", "mat2"); });
    }
    add("addmm", AddedProduct);
    add("scaled_dot_product_attention", Attention);
    add("_native_multi_head_attention", ProjectedAttention);
    for (const char* name : {"mean", "sum", "amax"}) add(name, Reduced);
    add("transpose", Transpose);
    add("t", [](const Asked& call) { return Same("self", call.rank() - 1 - call.dimension()); });
    add("permute", Permute);
    add("unsqueeze", Unsqueeze);
    for (const char* name : {"squeeze", "select"}) add(name, Without);
    add("slice", AcrossDimension);
    for (const char* name : {"view", "_unsafe_view"}) {
      add(name, [](const Asked& call) { return View(call, "size"); });
    }
    add("reshape", [](const Asked& call) { return View(call, "shape"); });
    add("flatten", [](const Asked& call) { return View(call, ""); });
    add("expand", Expand);
    add("cat", Concatenate);
    add("stack", Stack);
    add("embedding", Embedding);
    add("gather", Gather);
    add("roll", Roll);
    for (const char* name : {"pad", "constant_pad_nd"}) add(name, Pad);
    return rules;
  }();
  return kRules;
}

bool MayBeView(const std::string& oper) {
  static const std::set<std::string> kViews = {
      "aten::alias",   "aten::contiguous",  "aten::detach",    "aten::dropout",
      "aten::expand",  "aten::flatten",     "aten::permute",   "aten::feature_dropout",
      "aten::pad",     "aten::reshape",     "aten::select",    "aten::slice",
      "aten::squeeze", "aten::transpose",   "aten::unsqueeze", "aten::view",
      "aten::t",       "aten::_unsafe_view"};
  return kViews.contains(oper);
}

}  // namespace

std::int64_t NumElements(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::optional<Interval> Need::Of(Interval part, std::int64_t size) const {
  if (part.begin % per != 0 || part.end % per != 0) return std::nullopt;
  const std::int64_t begin = part.begin / per * step - before;
  const std::int64_t end = (part.end / per - 1) * step - before + extent;
  const Interval interval{std::max<std::int64_t>(begin, 0), std::min(end, size)};
  return interval.length() > 0 ? std::optional(interval) : std::nullopt;
}

PaddedPart Padded(const Need& need, Interval part, std::int64_t size) {
  const std::int64_t begin = part.begin * need.step - need.before;
  const std::int64_t end = (part.end - 1) * need.step - need.before + need.extent;
  if (begin >= 0 && end <= size) return {{begin, end}, 0, 0};
  // The first row that is made begins `before` ahead of the rows given: at a multiple of `step`.
  const std::int64_t first = std::max<std::int64_t>(begin, 0) / need.step;
  return {{first * need.step, std::min(end, size)}, need.before, part.begin - first};
}

std::optional<PaddedPart> Slicing::ArgumentOf(const Need& need, Interval part,
                                              std::int64_t size) const {
  if (!padding.empty()) {
    const PaddedPart padded = Padded(need, part, size);
    return padded.argument.length() > 0 ? std::optional(padded) : std::nullopt;
  }
  const std::optional<Interval> interval = need.Of(part, size);
  return interval ? std::optional(PaddedPart{*interval}) : std::nullopt;
}

std::vector<std::string> SliceableOperators() {
  std::vector<std::string> names;
  for (const auto& [name, rule] : Rules()) names.push_back(name);
  std::ranges::sort(names);
  return names;
}

std::optional<Slicing> SlicingOf(const Call& call, int dimension) {
  if (dimension < 0 || dimension >= static_cast<int>(call.result.size())) return std::nullopt;
  if (call.result[dimension] < 2) return std::nullopt;
  std::string oper = call.oper;
  const bool changes_argument = oper.ends_with('_');
  if (changes_argument) oper.pop_back();
  const auto rule = Rules().find(oper);
  if (rule == Rules().end()) return std::nullopt;
  std::optional<Slicing> slicing = rule->second(Asked(call, dimension));
  if (!slicing) return slicing;
  slicing->changes_argument = changes_argument;
  slicing->may_be_view = MayBeView(oper);
  return slicing;
}

}  // namespace torch_ext::program
