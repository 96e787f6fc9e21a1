// One launch in a program of its own, so that the kernel can run under a sanitizer: reads a file
// that tests/support/cuda_on_host.py wrote, runs the kernel on buffers of exactly the sizes given
// there, writes them to a second file. Usage: program <launch> <result>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" const char* sk_host_launch(const char*, const void*, int64_t, int64_t, int64_t, int64_t);

namespace {

struct Relocation {
  int64_t at, buffer, offset;
};

template <class T>
std::vector<T> read(FILE* file, int64_t count) {
  std::vector<T> items(static_cast<size_t>(count));
  if (count && std::fread(items.data(), sizeof(T), items.size(), file) != items.size())
    std::exit(3);
  return items;
}

}  // namespace

int main(int, char** arguments) {
  FILE* file = std::fopen(arguments[1], "rb");
  if (file == nullptr) return 3;
  const auto head = read<int64_t>(file, 7);
  const int64_t grid = head[0], block = head[1], shared_bytes = head[2];
  const auto letters = read<char>(file, head[3]);
  auto params = read<unsigned char>(file, head[4]);
  const auto relocations = read<Relocation>(file, head[5]);
  const auto sizes = read<int64_t>(file, head[6]);
  std::vector<char*> buffers;
  for (const int64_t size : sizes) {
    const auto bytes = read<char>(file, size);
    buffers.push_back(static_cast<char*>(std::malloc(bytes.size())));
    if (size) std::memcpy(buffers.back(), bytes.data(), bytes.size());
  }
  std::fclose(file);
  for (const Relocation& r : relocations) {
    const char* pointer = buffers[static_cast<size_t>(r.buffer)] + r.offset;
    std::memcpy(params.data() + r.at, &pointer, sizeof pointer);
  }
  const std::string name(letters.begin(), letters.end());
  const char* error =
      sk_host_launch(name.c_str(), params.data(), head[4], grid, block, shared_bytes);
  if (error != nullptr) {
    std::fprintf(stderr, "%s\n", error);
    return 2;
  }
  file = std::fopen(arguments[2], "wb");
  for (size_t i = 0; i < buffers.size(); ++i)
    std::fwrite(buffers[i], 1, static_cast<size_t>(sizes[i]), file);
  std::fclose(file);
  return 0;
}
