#define _GNU_SOURCE
#include "opencl_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "ffi.h"

// A function of native/opencl_runtime/register.cc, and a part of that library's name.
#define DESCRIBE "tvm_mobilenet.opencl.describe"
#define LIBRARIES "*opencl*.so"

enum { ANSWER_MAX = 256 << 10 };
enum { KNOWN = 0, UNKNOWN = 2 };  // how the process ends; another runtime has no such function

static const double kLimitS = 15;  // a driver compiles nothing to say what there is

static bool has_library(const char* side_folder) {
  char pattern[PATH_MAX];
  glob_t found;
  snprintf(pattern, sizeof pattern, "%s/" LIBRARIES, side_folder);
  bool any = glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0;
  globfree(&found);
  return any;
}

static _Noreturn void ask(const char* side_folder, int fd) {
  TVMFFIAny result;
  const char* data;
  size_t size;
  child_load_side_libraries(side_folder);
  if (ffi_call_global(DESCRIBE, NULL, 0, &result) != 0) _exit(UNKNOWN);
  if (!ffi_arg_bytes(&result, "devices", &data, &size)) _exit(UNKNOWN);
  while (size > 0) {
    ssize_t written = write(fd, data, size);
    if (written < 0 && errno != EINTR) _exit(UNKNOWN);
    if (written > 0) data += written, size -= (size_t)written;
  }
  // Nothing of the driver's own end is run: the memory goes with the process.
  _exit(KNOWN);
}

void opencl_probe_start(OpenCLProbe* probe, const char* side_folder) {
  int ends[2];
  *probe = (OpenCLProbe){.fd = -1, .deadline = monotonic_s() + kLimitS};
  if (!has_library(side_folder)) return;
  if (pipe2(ends, O_CLOEXEC) != 0) {
    perror("agent: OpenCL");
    return;
  }
  pid_t parent = getpid();
  pid_t pid = fork();
  if (pid == 0) {
    child_become(parent, ends[1], -1);
    ask(side_folder, ends[1]);
  }
  close(ends[1]);
  if (pid < 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0) {
    perror("agent: OpenCL");
    close(ends[0]);
    if (pid < 0) return;
    ends[0] = -1;
  }
  setpgid(pid, pid);
  probe->pid = pid;
  probe->fd = ends[0];
}

static void read_answer(OpenCLProbe* probe) {
  char block[4096];
  ssize_t size;
  while ((size = read(probe->fd, block, sizeof block)) > 0) {
    if (probe->answer.size < ANSWER_MAX) text_add_bytes(&probe->answer, block, (size_t)size);
  }
}

void opencl_probe_step(OpenCLProbe* probe) {
  int status;
  if (!probe->pid) return;
  bool late = monotonic_s() > probe->deadline;
  if (late) kill(-probe->pid, SIGKILL);
  read_answer(probe);
  pid_t ended = waitpid(probe->pid, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return;
  read_answer(probe);
  kill(-probe->pid, SIGKILL);
  close(probe->fd);
  probe->pid = 0;
  probe->fd = -1;
  int code = ended > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  if (code == KNOWN && !probe->answer.failed && probe->answer.size < ANSWER_MAX) {
    probe->devices = probe->answer;
    probe->answer = (Text){0};
    return;
  }
  text_free(&probe->answer);
  if (code == UNKNOWN) return;
  text_add(&probe->devices, "{\"devices\":[],\"reason\":");
  text_add_json(&probe->devices, late ? "the driver does not say what there is in time"
                                      : "the driver ends the process that asks what there is");
  text_add(&probe->devices, "}");
}

void opencl_probe_stop(OpenCLProbe* probe) {
  if (probe->pid) {
    kill(-probe->pid, SIGKILL);
    waitpid(probe->pid, NULL, 0);
    close(probe->fd);
    probe->pid = 0;
  }
  text_free(&probe->answer);
  text_free(&probe->devices);
}
