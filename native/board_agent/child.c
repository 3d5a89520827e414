#define _GNU_SOURCE
#include "child.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "board_functions.h"
#include "ffi.h"
#include "packet.h"
#include "server_functions.h"

enum { RECEIVE_MAX = 256 << 10 };

static struct {
  int socket;
  int reason_fd;
  Shared* shared;
  Frames incoming, outgoing;
  size_t held;  // bytes of a shutdown packet that TVM has written
} g_line;

static _Noreturn void end(char kind, const char* reason);

static bool wait_for(short events) {
  struct pollfd line = {.fd = g_line.socket, .events = events};
  while (poll(&line, 1, -1) < 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

static _Noreturn void end_lost(void) {
  char reason[128];
  snprintf(reason, sizeof reason, "the link to the client failed: %s", strerror(errno));
  end(CHILD_LOST, reason);
}

// Hands TVM what has arrived, and ends the session over a frame that announces more than a board
// should take: TVM would reserve the memory at once.
static int receive(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  static uint8_t block[RECEIVE_MAX];
  int64_t wanted;
  if (!ffi_arg_count("receive", count, 1)) return -1;
  if (!ffi_arg_int(&args[0], "size", 1, INT64_MAX, &wanted)) return -1;
  size_t size = wanted < RECEIVE_MAX ? (size_t)wanted : RECEIVE_MAX;
  ssize_t got;
  while ((got = recv(g_line.socket, block, size, MSG_DONTWAIT)) < 0) {
    if (errno != EINTR && (errno != EAGAIN || !wait_for(POLLIN))) end_lost();
  }
  for (size_t passed = 0; passed < (size_t)got;) {
    uint64_t announced;
    passed += frames_pass(&g_line.incoming, block + passed, (size_t)got - passed, &announced);
    if (announced > FRAME_MAX) {
      char reason[128];
      snprintf(reason, sizeof reason,
               "a frame of %" PRIu64 " bytes was announced, %" PRIu64 " are the most", announced,
               FRAME_MAX);
      end(CHILD_FAILED, reason);
    }
  }
  return ffi_return_bytes(block, (size_t)got, result);
}

static void send_all(const uint8_t* data, size_t size) {
  if (size == 0) return;
  for (size_t passed = 0; passed < size;) {
    uint64_t announced;
    passed += frames_pass(&g_line.outgoing, data + passed, size - passed, &announced);
  }
  bool complete = frames_at_border(&g_line.outgoing);
  g_line.shared->unsent = true;
  for (size_t sent = 0; sent < size;) {
    ssize_t written = send(g_line.socket, data + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN && wait_for(POLLOUT)) continue;
    if (written < 0) end_lost();
    sent += (size_t)written;
  }
  // Killed just here, the session leaves the client with a closed connection and no reason.
  g_line.shared->unsent = !complete;
}

// Sends what TVM has written, but for the shutdown packet with which it takes leave over an error:
// the client would take that for the answer to its call, and not read the reason that follows.
static int transmit(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  static const uint8_t kShutdown[] = {4, 0, 0, 0, 0, 0, 0, 0, RPC_SHUTDOWN, 0, 0, 0};
  const uint8_t* data;
  size_t size;
  if (!ffi_arg_count("transmit", count, 1)) return -1;
  if (!ffi_arg_bytes(&args[0], "data", (const char**)&data, &size)) return -1;
  *result = ffi_int((int64_t)size);
  // TVM's buffer may hand a packet out in two pieces.
  size_t same = 0;
  if (frames_at_border(&g_line.outgoing)) {
    while (same < size && g_line.held + same < sizeof kShutdown &&
           data[same] == kShutdown[g_line.held + same]) {
      ++same;
    }
    if (same == size) {
      g_line.held += same;
      return 0;
    }
    send_all(kShutdown, g_line.held);
    g_line.held = 0;
  }
  send_all(data, size);
  return 0;
}

static void limit(int resource, rlim_t value) {
  struct rlimit now;
  if (getrlimit(resource, &now) != 0) return;
  if (now.rlim_max != RLIM_INFINITY && value > now.rlim_max) value = now.rlim_max;
  now.rlim_cur = now.rlim_max = value;
  if (setrlimit(resource, &now) != 0) perror("agent: setrlimit");
}

static _Noreturn void end(char kind, const char* reason) {
  char message[512];
  int size = snprintf(message, sizeof message, "%c%s", kind, reason);
  if (size >= (int)sizeof message) size = sizeof message - 1;
  // The pipe is new and larger than this: it takes it in one piece.
  if (write(g_line.reason_fd, message, (size_t)size) != size) _exit(3);
  // Nothing of the loaded libraries' own end is run: the memory goes with the process.
  _exit(0);
}

static void close_all_but(int first, int second) {
  long highest = sysconf(_SC_OPEN_MAX);
  if (highest < 0 || highest > 4096) highest = 4096;  // the supervisor has far fewer open
  for (int fd = 3; fd < highest; ++fd) {
    if (fd != first && fd != second) close(fd);
  }
}

void child_become(pid_t parent, int first_fd, int second_fd) {
  setpgid(0, 0);
  // It does not outlive its agent.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  // TVM's own handler of a crash writes a backtrace, from a process whose memory may be in any state:
  // it can hang. The signal alone says enough.
  static const int kSignals[] = {SIGTERM, SIGINT,  SIGHUP, SIGCHLD, SIGPIPE,
                                 SIGSEGV, SIGABRT, SIGBUS, SIGFPE,  SIGILL};
  for (size_t i = 0; i < sizeof kSignals / sizeof *kSignals; ++i) signal(kSignals[i], SIG_DFL);
  close_all_but(first_fd, second_fd);
}

void child_load_side_libraries(const char* folder) {
  struct dirent** entries;
  int count = scandir(folder, &entries, NULL, alphasort);
  for (int i = 0; i < count; ++i) {
    const char* name = entries[i]->d_name;
    size_t length = strlen(name);
    if (length > 3 && strcmp(name + length - 3, ".so") == 0) {
      char path[PATH_MAX];
      snprintf(path, sizeof path, "%s/%s", folder, name);
      if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == NULL) {
        fprintf(stderr, "agent: side library %s is left out: %s\n", name, dlerror());
      }
    }
    free(entries[i]);
  }
  if (count >= 0) free(entries);
}

void child_run(const ChildSetup* setup) {
  g_line.socket = setup->socket;
  g_line.shared = setup->shared;
  g_line.reason_fd = setup->reason_fd;
  limit(RLIMIT_CORE, 0);
#ifndef __SANITIZE_ADDRESS__  // which has mapped terabytes that it does not use
  // The supervisor watches what is in use; this is for what is asked for between two looks.
  limit(RLIMIT_DATA, setup->memory_limit_bytes + ((rlim_t)256 << 20));
#endif
  if (chdir(setup->folder) != 0 || setenv("TMPDIR", setup->folder, 1) != 0) {
    end(CHILD_FAILED, strerror(errno));
  }
  char reason[512];
  child_load_side_libraries(setup->side_folder);
  TVMFFIObjectHandle channel[2] = {NULL, NULL};
  if (!server_functions_register(setup->folder) || !board_functions_register() ||
      TVMFFIFunctionCreate(NULL, transmit, NULL, &channel[0]) != 0 ||
      TVMFFIFunctionCreate(NULL, receive, NULL, &channel[1]) != 0) {
    ffi_take_error(reason, sizeof reason);
    end(CHILD_FAILED, reason);
  }
  TVMFFIAny args[] = {ffi_object(channel[0], kTVMFFIFunction),
                      ffi_object(channel[1], kTVMFFIFunction)};
  TVMFFIAny result;
  if (ffi_call_global("rpc.ServerLoop", args, 2, &result) == 0) {
    end(CHILD_CLOSED, "");
  }
  ffi_take_error(reason, sizeof reason);
  end(CHILD_FAILED, reason);
}
