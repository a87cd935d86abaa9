// A pool for large tensors of the CPU: PyTorch's allocator while it is in use.
//
// Blocks are mapped from the system and reused for requests of the same size. Before more is mapped, free blocks of other sizes are
// unmapped, as many as the request needs, so that the process never holds more than was in use at once. Activations of a residual network
// have few sizes, so almost every request finds a block. On the C library's heap they do not: an aligned request does not fit the hole that
// an equal one left, and small tensors between the large ones keep holes apart.

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t LARGE = 256 << 10;  // bytes from which the pool serves a request
constexpr size_t PAGE = 4096;

class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes < LARGE ? nullptr : take((bytes + PAGE - 1) / PAGE * PAGE);
    if (block == nullptr) block = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
    return {block, block, &Pool::release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Pool::release; }

  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

  // Once used, the pool stays PyTorch's allocator, which passes requests on: it has to know its blocks when they are freed.
  void use(bool on) {
    std::lock_guard<std::mutex> guard(lock_);
    users_ += on ? 1 : -1;
    if (users_ == 0) unmap_free(SIZE_MAX);
    c10::SetCPUAllocator(this);
  }

 private:
  static void release(void* block);

  // A block of `size` bytes; null where the pool is not in use or the system has no memory.
  void* take(size_t size) {
    std::lock_guard<std::mutex> guard(lock_);
    if (users_ == 0) return nullptr;
    auto found = free_.find(size);
    void* block = nullptr;
    if (found != free_.end() && !found->second.empty()) {
      block = found->second.back();
      found->second.pop_back();
    } else {
      unmap_free(size);
      block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (block == MAP_FAILED) return nullptr;
    }
    taken_[block] = size;
    return block;
  }

  // Takes a block back; false where it is not the pool's.
  bool put(void* block) {
    if (reinterpret_cast<uintptr_t>(block) % PAGE != 0) return false;
    std::lock_guard<std::mutex> guard(lock_);
    const auto found = taken_.find(block);
    if (found == taken_.end()) return false;
    const size_t size = found->second;
    taken_.erase(found);
    if (users_ > 0) {
      free_[size].push_back(block);
    } else {
      munmap(block, size);
    }
    return true;
  }

  // Unmaps free blocks, the largest first, until they were `wanted` bytes.
  void unmap_free(size_t wanted) {
    size_t unmapped = 0;
    for (auto blocks = free_.rbegin(); blocks != free_.rend(); ++blocks)
      while (!blocks->second.empty() && unmapped < wanted) {
        munmap(blocks->second.back(), blocks->first);
        blocks->second.pop_back();
        unmapped += blocks->first;
      }
  }

  std::mutex lock_;
  int users_ = 0;
  std::unordered_map<void*, size_t> taken_;
  std::map<size_t, std::vector<void*>> free_;
};

Pool& pool() {
  static Pool* one = new Pool;  // never destroyed: tensors may outlive everything else
  return *one;
}

void Pool::release(void* block) {
  if (!pool().put(block)) c10::GetDefaultCPUAllocator()->raw_deallocate(block);
}

}  // namespace

// Begins (1) or ends (0) a use of the pool; uses may nest. Tensors may be freed after the end.
extern "C" void use_pool(int on) {
  pool().use(on != 0);
}
