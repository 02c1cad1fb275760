#include "jit/execute.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/print_handler.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "jit/nodes.h"
#include "jit/prepare.h"
#include "memory/meter.h"

namespace torch_ext::jit {
namespace {

// What programs print while a QuietRun is alive. A program goes on in another thread after a wait;
// torch's debug information follows it there, and so finds where its text belongs.
class Printed : public c10::DebugInfoBase {
 public:
  void Add(const std::string& text) {
    const std::lock_guard lock(mutex_);
    text_ += text;
  }
  std::string Take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(text_, {});
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

c10::DebugInfoKind PrintedSlot() {
  return c10::DebugInfoKind::TEST_INFO_2;  // one that torch itself has no use for
}

Printed* PrintedHere() {
  return static_cast<Printed*>(c10::ThreadLocalDebugInfo::get(PrintedSlot()));
}

torch::jit::PrintHandler g_outer_handler = nullptr;

void CollectPrinted(const std::string& text) {
  if (Printed* printed = PrintedHere()) {
    printed->Add(text);
  } else {
    g_outer_handler(text);  // another thread's program
  }
}

at::Generator DefaultGenerator() {
  return at::detail::getDefaultCPUGenerator();
}

at::Tensor RandomState() {
  at::Generator generator = DefaultGenerator();
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void SetRandomState(const at::Tensor& state) {
  at::Generator generator = DefaultGenerator();
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

// The print handler is global: the first of several runs installs ours, the last removes it.
std::mutex g_handler_mutex;
int g_handler_users = 0;

}  // namespace

struct QuietRun::State {
  at::NoGradGuard no_grad;
  at::Tensor random_state = RandomState();
  c10::DebugInfoGuard printed{PrintedSlot(), std::make_shared<Printed>()};
};

QuietRun::QuietRun() : state_(std::make_unique<State>()) {
  const std::lock_guard lock(g_handler_mutex);
  if (g_handler_users++ == 0) {
    g_outer_handler = torch::jit::getPrintHandler();
    torch::jit::setPrintHandler(&CollectPrinted);
  }
}

QuietRun::~QuietRun() {
  SetRandomState(state_->random_state);
  const std::lock_guard lock(g_handler_mutex);
  if (--g_handler_users == 0) torch::jit::setPrintHandler(g_outer_handler);
}

void QuietRun::RewindRandomState() const {
  SetRandomState(state_->random_state);
}

std::string QuietRun::TakePrinted() {
  return PrintedHere()->Take();
}

ScratchModule::ScratchModule(const torch::jit::Module& original)
    : module_(original.clone(/*inplace=*/true)) {}

ScratchModule::~ScratchModule() {
  if (kept_) return;
  const std::shared_ptr<torch::jit::CompilationUnit> unit = module_._ivalue()->compilation_unit();
  std::unordered_set<const void*> seen;  // submodules may share a type
  for (const torch::jit::Module& part : module_.modules()) {
    const c10::ClassTypePtr type = part.type();
    if (!seen.insert(type.get()).second) continue;
    const std::vector<torch::jit::Function*> methods = type->methods();
    for (const torch::jit::Function* method : methods) {
      const c10::QualifiedName name = method->qualname();
      type->unsafeRemoveMethod(name.name());
      unit->unsafeRemoveMethod(name);
    }
  }
}

torch::jit::Module ScratchModule::Keep() {
  kept_ = true;
  return module_;
}

torch::jit::Module DeepCopy(const torch::jit::Module& module) {
  return torch::jit::Module(ValueCopier().Copy(module._ivalue()).toObject());
}

void ScratchModule::CopyConstants() {
  const std::shared_ptr<torch::jit::Graph> graph = ForwardGraph(module_);
  torch::jit::Inline(*graph);
  ValueCopier copier;
  ForEachNode(graph->block(), [&](torch::jit::Node* node) {
    if (node->kind() != c10::prim::Constant || !node->hasAttribute(c10::attr::value)) return;
    if (node->kindOf(c10::attr::value) == torch::jit::AttributeKind::t) {
      node->t_(c10::attr::value, copier.Copy(node->t(c10::attr::value)).toTensor());
    } else if (node->kindOf(c10::attr::value) == torch::jit::AttributeKind::ival) {
      const c10::IValue& value = node->ival(c10::attr::value);
      if (!value.isObject()) node->ival_(c10::attr::value, copier.Copy(value));
    }
  });
}

Stack CopiedInputs(const torch::jit::Module& module, const Stack& example, bool copy_state) {
  Stack inputs{copy_state ? DeepCopy(module)._ivalue() : module._ivalue()};
  ValueCopier copier;
  for (const c10::IValue& input : example) inputs.push_back(copier.Copy(input));
  return inputs;
}

void FillAtRandom(Stack& arguments) {
  auto generator = at::detail::createCPUGenerator(/*seed=*/0);
  for (const c10::IValue& argument : arguments) {
    if (!argument.isTensor()) continue;
    const at::Tensor tensor = argument.toTensor();
    if (HasMemory(tensor) && tensor.is_floating_point() && tensor.is_non_overlapping_and_dense()) {
      tensor.normal_(0, 1, generator);
    }
  }
}

Execution Execute(const torch::jit::Module& module, const Stack& example, bool copy_state,
                  const QuietRun& quiet) {
  constexpr int kCalls = 3;
  Execution execution;
  for (int i = 0; i < kCalls; ++i) {
    Call call;
    call.inputs = CopiedInputs(module, example, copy_state);
    call.state = call.inputs.front();
    call.inputs.erase(call.inputs.begin());
    quiet.RewindRandomState();
    QuietRun::TakePrinted();
    Stack arguments = call.inputs;
    {
      memory::Meter meter;
      call.output =
          torch::jit::Module(call.state.toObject()).get_method("forward")(std::move(arguments));
      meter.Stop();
      execution.peak_bytes = meter.peak_bytes();
    }
    call.random_state = RandomState();
    call.printed = QuietRun::TakePrinted();
    if (i == 0) execution.first = std::move(call);
    if (i == kCalls - 1) execution.last = std::move(call);
  }
  return execution;
}

namespace {

std::string CallDifference(const Call& a, const Call& b) {
  ValueComparer comparer;
  for (std::size_t i = 0; i < a.inputs.size(); ++i) {
    const std::string where = "input[" + std::to_string(i) + "]";
    if (std::string why = comparer.Difference(a.inputs[i], b.inputs[i], where); !why.empty()) {
      return why;
    }
  }
  if (!a.state.is(b.state)) {
    if (std::string why = comparer.Difference(a.state, b.state, "module"); !why.empty()) return why;
  }
  if (std::string why = comparer.Difference(a.output, b.output, "output"); !why.empty()) return why;
  if (!a.random_state.equal(b.random_state)) return "the random state afterwards differs";
  if (a.printed != b.printed) return "what is printed differs";
  return {};
}

}  // namespace

std::string FindDifference(const Execution& a, const Execution& b) {
  std::string why = CallDifference(a.first, b.first);
  if (!why.empty()) return "first call: " + why;
  why = CallDifference(a.last, b.last);
  return why.empty() ? why : "third call: " + why;
}

namespace {

double SecondsOfCall(const torch::jit::Module& module, const Stack& example, bool copy_state,
                     const QuietRun& quiet) {
  Stack inputs = CopiedInputs(module, example, copy_state);
  const c10::IValue state = inputs.front();
  inputs.erase(inputs.begin());
  quiet.RewindRandomState();
  const auto start = std::chrono::steady_clock::now();
  const c10::IValue output =
      torch::jit::Module(state.toObject()).get_method("forward")(std::move(inputs));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  QuietRun::TakePrinted();
  return seconds.count();
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

PairedSeconds TimeInTurns(const torch::jit::Module& a, const torch::jit::Module& b,
                          const Stack& example, bool copy_state, const QuietRun& quiet) {
  constexpr int kUnsettled = 2, kFewest = 3, kMost = 7;
  constexpr double kEnoughSeconds = 4;  // what takes that long varies little
  std::vector<double> seconds_a, seconds_b;
  double all_seconds = 0;
  for (int i = 0; i < kUnsettled + kMost; ++i) {
    if (i >= kUnsettled + kFewest && all_seconds > kEnoughSeconds) break;
    // Each is first in half of the turns.
    const auto time_a = [&] { seconds_a.push_back(SecondsOfCall(a, example, copy_state, quiet)); };
    if (i % 2 == 0) time_a();
    seconds_b.push_back(SecondsOfCall(b, example, copy_state, quiet));
    if (i % 2 == 1) time_a();
    all_seconds += seconds_a.back() + seconds_b.back();
  }
  const auto settled = [](const std::vector<double>& seconds) {
    return Median({seconds.begin() + kUnsettled, seconds.end()});
  };
  return {settled(seconds_a), settled(seconds_b)};
}

}  // namespace torch_ext::jit
