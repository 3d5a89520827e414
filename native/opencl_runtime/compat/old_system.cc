// What the compiler here takes from glibc and libstdc++ newer than those of boards.
//
// Compiled into libraries for boards alone. GCC 12's headers call these; glibc 2.28 and libstdc++
// of GCC 8, which TVM's own libraries are content with, do not have them.
#include <new>
#include <sstream>

#define OPENCL_RUNTIME_HIDDEN __attribute__((visibility("hidden")))

extern "C" {
// glibc 2.32: whether one thread can do without atomics. 0: it cannot.
extern OPENCL_RUNTIME_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;
}

namespace std {
// GCC 11: of a container that would be larger than the address space.
void __throw_bad_array_new_length() { throw bad_alloc(); }
}  // namespace std

// GCC 9, though the class is as old as the standard. TVM's header makes its error texts with it.
template std::basic_ostringstream<char>::basic_ostringstream();
