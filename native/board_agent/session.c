#define _GNU_SOURCE
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "text.h"

// A client that has gone leaves a session that has this long to notice.
static const double kGoneGraceS = 1.0;

static _Noreturn void become_child(const Session* session, const Options* options, int reason_fd,
                                   pid_t parent) {
  child_become(parent, session->fd, reason_fd);
  // Where memory runs out altogether, the session goes before the agent does.
  int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (oom >= 0) {
    if (write(oom, "1000", 4) != 4) perror("agent: oom_score_adj");
    close(oom);
  }
  const ChildSetup setup = {.socket = session->fd,
                            .reason_fd = reason_fd,
                            .folder = session->folder,
                            .side_folder = options->side_folder,
                            .memory_limit_bytes = options->memory_limit_bytes,
                            .shared = session->shared};
  child_run(&setup);
}

bool session_start(Session* session, const Options* options, const WorkFolder* work, int fd,
                   const Request* request, char* reason, size_t capacity) {
  static Shared* shared;
  unsigned long number = session->number + 1;
  if (shared == NULL) {
    void* page = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
      snprintf(reason, capacity, "board: no memory for a session: %s", strerror(errno));
      return false;
    }
    shared = page;
  }
  *session = (Session){.fd = fd, .number = number, .request = *request, .shared = shared};
  shared->unsent = false;
  session->memory_limit_bytes = options->memory_limit_bytes;
  session->limit_s = options->session_timeout_s;
  if (request->timeout_s > 0 && request->timeout_s < session->limit_s) {
    session->limit_s = request->timeout_s;
  }
  if (!folder_make(work, number, session->folder)) {
    snprintf(reason, capacity, "board: no session: its folder %s cannot be made: %s",
             session->folder, strerror(errno));
    return false;
  }
  int ends[2] = {-1, -1};
  pid_t parent = getpid();
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0) session->pid = fork();
  if (ends[0] < 0 || session->pid < 0) {
    snprintf(reason, capacity, "board: no process for a session: %s", strerror(errno));
    session->pid = 0;
    for (int i = 0; i < 2; ++i) {
      if (ends[i] >= 0) close(ends[i]);
    }
    folder_remove(session->folder);
    return false;
  }
  if (session->pid == 0) become_child(session, options, ends[1], parent);
  setpgid(session->pid, session->pid);
  close(ends[1]);
  session->reason_fd = ends[0];
  session->began = monotonic_s();
  session->began_unix = unix_s();
  return true;
}

void session_kill(Session* session, Verdict verdict) {
  if (session->verdict == END_BY_ITSELF) session->verdict = verdict;
  kill(-session->pid, SIGKILL);
  kill(session->pid, SIGKILL);
}

static uint64_t resident_bytes(pid_t pid) {
  char path[64];
  char line[128];
  unsigned long long total;
  unsigned long long resident;
  snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
  if (!read_line(path, line, sizeof line)) return 0;
  if (sscanf(line, "%llu %llu", &total, &resident) != 2) return 0;
  return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void enforce(Session* session, bool client_gone) {
  if (session->verdict != END_BY_ITSELF) return;
  double now = monotonic_s();
  uint64_t resident = resident_bytes(session->pid);
  if (resident > session->peak_bytes) session->peak_bytes = resident;
  if (!client_gone) {
    session->gone_since = 0;
  } else if (session->gone_since == 0) {
    session->gone_since = now;
  }
  if (resident > session->memory_limit_bytes) {
    session_kill(session, END_MEMORY);
  } else if (now - session->began > session->limit_s) {
    session_kill(session, END_TIME);
  } else if (session->gone_since > 0 && now - session->gone_since > kGoneGraceS) {
    session_kill(session, END_CLIENT_GONE);
  }
}

// Kills what a session's process has started and left: as their subreaper the supervisor has become
// the parent of all of it.
static void kill_strays(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
  // A stray may be starting another one; each round catches a generation.
  for (int round = 0; round < 100; ++round) {
    Text children = {0};
    if (!read_file(path, &children, 65536) || children.size == 0) {
      text_free(&children);
      break;
    }
    char* state = NULL;
    for (char* word = strtok_r(children.data, " ", &state); word;
         word = strtok_r(NULL, " ", &state)) {
      kill((pid_t)atoi(word), SIGKILL);
    }
    text_free(&children);
    for (int wait = 0; wait < 200 && waitpid(-1, NULL, WNOHANG) >= 0; ++wait) usleep(1000);
  }
}

static void describe_limit(const Session* session, SessionEnd* end) {
  snprintf(end->end, sizeof end->end, "memory-limit");
  snprintf(end->detail, sizeof end->detail, "%" PRIu64 " MiB in use, %" PRIu64 " MiB allowed",
           session->peak_bytes >> 20, session->memory_limit_bytes >> 20);
  snprintf(end->message, sizeof end->message, "board: session ended by the memory limit: %s",
           end->detail);
}

static const char* signal_name(int number) {
  // sigabbrev_np came with glibc 2.32, later than many boards have.
  static const struct {
    int number;
    const char* name;
  } kNames[] = {{SIGSEGV, "SIGSEGV"}, {SIGBUS, "SIGBUS"},   {SIGILL, "SIGILL"},
                {SIGFPE, "SIGFPE"},   {SIGABRT, "SIGABRT"}, {SIGKILL, "SIGKILL"},
                {SIGTERM, "SIGTERM"}, {SIGTRAP, "SIGTRAP"}, {SIGSYS, "SIGSYS"}};
  for (size_t i = 0; i < sizeof kNames / sizeof *kNames; ++i) {
    if (kNames[i].number == number) return kNames[i].name;
  }
  return "a signal";
}

static void describe_signal(const Session* session, int number, SessionEnd* end) {
  const char* words = strsignal(number);
  // The kernel's limit is a little above ours; running into it shows as a crash.
  if (session->peak_bytes > session->memory_limit_bytes / 10 * 9) {
    describe_limit(session, end);
    return;
  }
  snprintf(end->end, sizeof end->end, "signal");
  snprintf(end->detail, sizeof end->detail, "%s (%s)", signal_name(number),
           words ? words : "?");
  snprintf(end->message, sizeof end->message,
           "board: session ended by %s: what was loaded or called crashed", end->detail);
}

static void describe_exit(int code, const char* told, SessionEnd* end) {
  if (told[0] == CHILD_CLOSED || told[0] == CHILD_LOST) {
    snprintf(end->end, sizeof end->end, "closed");
    snprintf(end->detail, sizeof end->detail, "%s", told + 1);
    return;
  }
  snprintf(end->end, sizeof end->end, "exit");
  if (told[0] == CHILD_FAILED) {
    snprintf(end->detail, sizeof end->detail, "%s", told + 1);
  } else {
    snprintf(end->detail, sizeof end->detail,
             "exit code %d: what was loaded or called ended the process", code);
  }
  snprintf(end->message, sizeof end->message, "board: session ended: %s", end->detail);
}

static void describe(const Session* session, int status, const char* told, SessionEnd* end) {
  *end = (SessionEnd){.seconds = monotonic_s() - session->began};
  switch (session->verdict) {
    case END_TIME:
      snprintf(end->end, sizeof end->end, "time-limit");
      snprintf(end->detail, sizeof end->detail, "%g s are over", session->limit_s);
      // TVM's client makes an error of its own kind of what begins like this.
      snprintf(end->message, sizeof end->message,
               "RPCSessionTimeoutError: board: session ended by its time limit: %s; ask for more "
               "with session_timeout, the agent's own limit is --session-timeout-s",
               end->detail);
      return;
    case END_MEMORY:
      describe_limit(session, end);
      return;
    case END_CLIENT_GONE:
      snprintf(end->end, sizeof end->end, "closed");
      snprintf(end->detail, sizeof end->detail, "the client went away while a call ran");
      return;
    case END_STOPPED:
      snprintf(end->end, sizeof end->end, "killed");
      snprintf(end->detail, sizeof end->detail, "the agent is being stopped");
      snprintf(end->message, sizeof end->message, "board: session ended: %s", end->detail);
      return;
    case END_BY_ITSELF:
      break;
  }
  if (WIFSIGNALED(status)) {
    describe_signal(session, WTERMSIG(status), end);
  } else {
    describe_exit(WEXITSTATUS(status), told, end);
  }
}

bool session_check(Session* session, bool client_gone, SessionEnd* end) {
  enforce(session, client_gone);
  int status;
  // Killed is soon gone, except where the kernel itself holds the process: then the next round waits.
  pid_t ended = waitpid(session->pid, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return false;
  kill(-session->pid, SIGKILL);
  kill_strays();
  char told[512] = "";
  ssize_t size = read(session->reason_fd, told, sizeof told - 1);
  told[size > 0 ? size : 0] = '\0';
  close(session->reason_fd);
  describe(session, status, told, end);
  if (!folder_remove(session->folder)) {
    fprintf(stderr, "agent: %s: cannot be removed: %s\n", session->folder, strerror(errno));
  }
  session->pid = 0;
  return true;
}
