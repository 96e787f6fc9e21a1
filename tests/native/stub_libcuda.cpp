// Stands in for libcuda.so.1: writes down what it is called with, a line for each call, and fails
// where it is told to. Used by tests/runtime/test_cuda_launcher.py.
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace {

std::string calls;
std::string failing;

int answer(const std::string& name, const std::string& told) {
  calls += name + " " + told + "\n";
  return name == failing ? 701 : 0;
}

std::string hexadecimal(const unsigned char* bytes, size_t count) {
  std::string text;
  char two[3];
  for (size_t i = 0; i < count; ++i) {
    std::snprintf(two, sizeof two, "%02x", bytes[i]);
    text += two;
  }
  return text;
}

void* context = nullptr;

// cuda.h: 0 is CU_STREAM_CAPTURE_MODE_GLOBAL, what every thread begins with, and 2 relaxed.
int capture_mode = 0;

// Handles are numbers that tell what they were made of.
intptr_t handles = 100;

}  // namespace

extern "C" {

const char* stub_calls() {
  return calls.c_str();
}

int stub_capture_mode() {
  return capture_mode;
}

void stub_reset(const char* call_that_fails) {
  capture_mode = 0;
  calls.clear();
  failing = call_that_fails;
  handles = 100;
  context = nullptr;
}

int cuGetErrorString(int code, const char** text) {
  *text = code == 701 ? "too many resources" : nullptr;
  return 0;
}

int cuDeviceGetAttribute(int* value, int key, int device) {
  *value = 1000 * device + key;
  return answer("attribute", std::to_string(key) + " of " + std::to_string(device));
}

int cuCtxGetCurrent(void** current) {
  *current = context;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** primary, int device) {
  *primary = reinterpret_cast<void*>(static_cast<intptr_t>(900 + device));
  return answer("retain", std::to_string(device));
}

int cuCtxSetCurrent(void* given) {
  context = given;
  return answer("bind", std::to_string(reinterpret_cast<intptr_t>(given)));
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
  std::swap(*mode, capture_mode);
  return 0;
}

int cuModuleLoadData(void** module, const void* image) {
  *module = reinterpret_cast<void*>(++handles);
  // What a driver does where the thread captures a stream.
  if (capture_mode != 2) return answer("forbidden load", "") + 900;
  return answer("load", hexadecimal(static_cast<const unsigned char*>(image), 4));
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = reinterpret_cast<void*>(++handles);
  return answer("function", std::to_string(reinterpret_cast<intptr_t>(module)) + " " + name);
}

int cuFuncSetAttribute(void* function, int key, int value) {
  return answer("set", std::to_string(reinterpret_cast<intptr_t>(function)) + " " +
                           std::to_string(key) + " " + std::to_string(value));
}

int cuLaunchKernel(void* function, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned block,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                   void** pointers, void** extra) {
  // cuda.h: 1 is followed by the address of the parameters, 2 by that of their size, 0 ends.
  const unsigned char* bytes = nullptr;
  size_t count = 0;
  for (; *extra != nullptr; extra += 2) {
    const auto key = reinterpret_cast<intptr_t>(extra[0]);
    if (key == 1) bytes = static_cast<const unsigned char*>(extra[1]);
    if (key == 2) count = *static_cast<size_t*>(extra[1]);
  }
  const std::string sizes = std::to_string(grid) + "x" + std::to_string(grid_y) + "x" +
                            std::to_string(grid_z) + " " + std::to_string(block) + "x" +
                            std::to_string(block_y) + "x" + std::to_string(block_z);
  return answer("launch", std::to_string(reinterpret_cast<intptr_t>(function)) + " " + sizes +
                              " shared " + std::to_string(shared_bytes) + " stream " +
                              std::to_string(reinterpret_cast<intptr_t>(stream)) +
                              (pointers ? " pointers " : " ") + hexadecimal(bytes, count));
}
}
