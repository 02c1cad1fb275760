// What tells the calls of a program apart that may allocate differently: dtypes, sizes, and strides
// where they are not the usual ones; whole numbers and flags by value, all else by its kind.
// `Float[1,3,224,224] 2 (Float[4] None)`.
//
// Templates, so that this needs no more of LibTorch than c10: for at::Tensor, c10::TensorImpl, and
// c10::IValue.
#pragma once

#include <c10/core/Layout.h>
#include <c10/core/ScalarType.h>

#include <sstream>
#include <string>

namespace torch_ext::memory {

template <typename Numbers>
void AppendNumbers(std::string& text, const Numbers& numbers) {
  const char* before = "[";
  for (const auto number : numbers) {
    text += before + std::to_string(number);
    before = ",";
  }
  text += *before == '[' ? "[]" : "]";
}

template <typename Tensor>
void AppendTensor(std::string& text, const Tensor& tensor) {
  text += c10::toString(c10::typeMetaToScalarType(tensor.dtype()));
  if (tensor.layout() != c10::kStrided) {
    std::ostringstream layout;
    layout << '/' << tensor.layout();
    text += layout.str();
    return;
  }
  AppendNumbers(text, tensor.sizes());
  if (tensor.is_contiguous()) return;
  text += '/';
  AppendNumbers(text, tensor.strides());
}

template <typename Values>
void AppendSignatures(std::string& text, const Values& values);

template <typename Value>
void AppendSignature(std::string& text, const Value& value) {
  if constexpr (requires { value.isTensor(); }) {
    if (value.isTensor()) {
      AppendSignature(text, value.toTensor());
    } else if (value.isTuple()) {
      AppendSignatures(text += '(', value.toTupleRef().elements());
      text += ')';
    } else if (value.isList()) {
      AppendSignatures(text += '(', value.toListRef());
      text += ')';
    } else if (value.isBool()) {
      text += value.toBool() ? "True" : "False";
    } else if (value.isInt()) {
      text += std::to_string(value.toInt());
    } else {
      text += value.tagKind();
    }
  } else {
    if constexpr (requires { value.defined(); }) {
      if (!value.defined()) {
        text += "None";
        return;
      }
    }
    AppendTensor(text, value);
  }
}

// With a blank between two.
template <typename Values>
void AppendSignatures(std::string& text, const Values& values) {
  bool is_first = true;
  for (const auto& value : values) {
    if (!is_first) text += ' ';
    is_first = false;
    AppendSignature(text, value);
  }
}

// Of a vector, an array or a list of such values.
template <typename Values>
std::string SignatureOf(const Values& values) {
  std::string text;
  AppendSignatures(text, values);
  return text;
}

}  // namespace torch_ext::memory
