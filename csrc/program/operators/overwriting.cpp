#include "program/operators/overwriting.h"

namespace torch_ext::program {
namespace {

using Names = std::vector<std::string>;

std::string Aten(const std::string& name) {
  return "aten::" + name;
}

void AddUnary(std::vector<OverwritingForm>& forms) {
  // `x_` where there is one: it is never a generated copy.
  for (const char* name :
       {"abs",       "acos",   "acosh", "asin",       "asinh",  "atan",        "atanh",
        "ceil",      "celu",   "clamp", "clamp_max",  "cos",    "clamp_min",   "cosh",
        "digamma",   "elu",    "erf",   "erfc",       "erfinv", "exp",         "exp2",
        "expm1",     "floor",  "frac",  "gelu",       "i0",     "hardsigmoid", "hardswish",
        "hardtanh",  "lgamma", "log",   "leaky_relu", "log10",  "log1p",       "log2",
        "logit",     "mish",   "neg",   "nan_to_num", "relu",   "reciprocal",  "relu6",
        "round",     "rsqrt",  "selu",  "sgn",        "sign",   "sigmoid",     "silu",
        "sin",       "sinc",   "sinh",  "sqrt",       "square", "tan",         "tanh",
        "threshold", "trunc"}) {
    forms.push_back({Aten(name), "", "self", Aten(name) + "_", "", "self"});
  }
  for (const char* name : {"softplus", "hardshrink", "softshrink"}) {
    forms.push_back({Aten(name), "", "self", Aten(name), "out", "out"});
  }
  for (const char* name : {"add", "sub", "mul", "div", "fmod", "remainder", "pow"}) {
    const std::string overload = std::string(name) == "pow" ? "Tensor_Scalar" : "Scalar";
    forms.push_back({Aten(name), overload, "self", Aten(name) + "_", "Scalar", "self"});
  }
}

// Any of the operands may be overwritten. `out=` and not `x_`, which has only the first one: so
// operands keep their places, and with them the payloads of NaNs.
void AddOperands(std::vector<OverwritingForm>& forms, const std::string& name,
                 const std::string& overload, const std::string& form_overload,
                 const std::string& target, const Names& operands, const Names& masks = {}) {
  for (const std::string& operand : operands) {
    OverwritingForm form{Aten(name), overload, operand, Aten(name), form_overload, target};
    for (const std::string& other : operands) {
      if (other != operand) form.typed.push_back(other);
    }
    form.shaped = form.typed;
    form.broadcasts = operands.size() == 2;
    form.shaped.insert(form.shaped.end(), masks.begin(), masks.end());
    forms.push_back(std::move(form));
  }
}

// Along a dimension: each line is read before it is written to, or as far as it is written to.
void AddLines(std::vector<OverwritingForm>& forms) {
  for (const char* name : {"cumsum", "cumprod"}) {
    forms.push_back({.oper = Aten(name),
                     .argument = "self",
                     .form = Aten(name),
                     .form_overload = "out",
                     .target = "out",
                     .dtype = "dtype"});
  }
  for (const char* name : {"softmax", "log_softmax"}) {
    const std::string form = Aten(std::string("_") + name);
    forms.push_back({.oper = Aten(name),
                     .overload = "int",
                     .argument = "self",
                     .form = form,
                     .form_overload = "out",
                     .target = "out",
                     .dtype = "dtype",
                     .adds_no = "half_to_float"});
    forms.push_back({.oper = form,
                     .argument = "self",
                     .form = form,
                     .form_overload = "out",
                     .target = "out",
                     .no = "half_to_float"});
  }
  forms.push_back({.oper = "aten::batch_norm",
                   .argument = "input",
                   .form = "aten::native_batch_norm",
                   .form_overload = "out",
                   .target = "out",
                   .no = "training",
                   .rest_like = "running_mean"});
  forms.push_back({.oper = "aten::_native_batch_norm_legit_no_training",
                   .argument = "input",
                   .form = "aten::native_batch_norm",
                   .form_overload = "out",
                   .target = "out",
                   .adds_no = "training",
                   .rest_like = "running_mean"});
  const Names two{"grad_output", "output"};
  AddOperands(forms, "_softmax_backward_data", "", "out", "grad_input", two);
  AddOperands(forms, "_log_softmax_backward_data", "", "out", "out", two);
}

void AddPointwise(std::vector<OverwritingForm>& forms) {
  const Names two{"self", "other"};
  for (const char* name : {"add", "sub", "mul", "div"}) {
    AddOperands(forms, name, "Tensor", "out", "out", two);
  }
  AddOperands(forms, "div", "Tensor_mode", "out_mode", "out", two);
  AddOperands(forms, "fmod", "Tensor", "Tensor_out", "out", two);
  AddOperands(forms, "remainder", "Tensor", "Tensor_out", "out", two);
  AddOperands(forms, "copysign", "Tensor", "out", "out", two);
  for (const char* name : {"maximum", "minimum", "fmax", "fmin", "atan2", "hypot", "logaddexp"}) {
    AddOperands(forms, name, "", "out", "out", two);
  }
  AddOperands(forms, "pow", "Tensor_Tensor", "Tensor_Tensor_out", "out", {"self", "exponent"});
  AddOperands(forms, "lerp", "Scalar", "Scalar_out", "out", {"self", "end"});
  AddOperands(forms, "lerp", "Tensor", "Tensor_out", "out", {"self", "end", "weight"});
  AddOperands(forms, "addcmul", "", "out", "out", {"self", "tensor1", "tensor2"});
  AddOperands(forms, "addcdiv", "", "out", "out", {"self", "tensor1", "tensor2"});
  AddOperands(forms, "where", "self", "self_out", "out", two, {"condition"});
  for (const char* overload : {"Scalar", "Tensor"}) {
    forms.push_back({.oper = "aten::masked_fill",
                     .overload = overload,
                     .argument = "self",
                     .form = "aten::masked_fill_",
                     .form_overload = overload,
                     .target = "self",
                     .shaped = {"mask"},
                     .broadcasts = true});
  }
}

void AddBackward(std::vector<OverwritingForm>& forms) {
  for (const char* name :
       {"threshold", "leaky_relu", "hardtanh", "hardsigmoid", "silu", "gelu", "softplus"}) {
    AddOperands(forms, name + std::string("_backward"), "", "grad_input", "grad_input",
                {"grad_output", "self"});
  }
  AddOperands(forms, "elu_backward", "", "grad_input", "grad_input",
              {"grad_output", "self_or_result"});
  for (const char* name : {"sigmoid", "tanh"}) {
    AddOperands(forms, name + std::string("_backward"), "", "grad_input", "grad_input",
                {"grad_output", "output"});
  }
}

}  // namespace

const std::vector<OverwritingForm>& OverwritingForms() {
  static const std::vector<OverwritingForm> kForms = [] {
    std::vector<OverwritingForm> forms;
    AddUnary(forms);
    AddPointwise(forms);
    AddBackward(forms);
    for (OverwritingForm& form : forms) form.keeps_layout = form.typed.size() < 2;
    AddLines(forms);
    for (OverwritingForm& form : forms) form.broadcasts &= form.keeps_layout;
    return forms;
  }();
  return kForms;
}

}  // namespace torch_ext::program
