#define _GNU_SOURCE
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "facts.h"
#include "text.h"

static const char kHelp[] =
    "usage: agent [options]\n"
    "  --host HOST              address to listen at (127.0.0.1); others need --auth-key-file\n"
    "  --port PORT              port to listen at (9090); 0 picks one\n"
    "  --tracker HOST:PORT      tracker to register with; needs --key\n"
    "  --key NAME               name under which this board is asked for\n"
    "  --advertise HOST         address that the tracker tells clients\n"
    "  --auth-key-file FILE     secret that every peer has to know\n"
    "  --session-timeout-s S    longest session (600)\n"
    "  --memory-limit-mib N     memory of a session (three quarters of what there is)\n"
    "  --workdir DIR            where sessions keep their files ($TMPDIR or /tmp)\n"
    "  --port-file FILE         write the port there once it is open\n"
    "  --facts                  print what is known about this board, and end\n";

static int usage(const char* what, const char* value, const char* remedy) {
  fprintf(stderr, "agent: %s '%s': %s\n", what, value, remedy);
  return EXIT_USAGE;
}

static bool take_text(const char* from, char* to, size_t capacity) {
  if (strlen(from) >= capacity) return false;
  memcpy(to, from, strlen(from) + 1);
  return true;
}

bool split_address(const char* text, char host[HOST_MAX], int* port) {
  const char* colon = strrchr(text, ':');
  double number;
  if (colon == NULL || !parse_number(colon + 1, 1, 65535, &number)) return false;
  size_t size = (size_t)(colon - text);
  if (size >= 2 && text[0] == '[' && text[size - 1] == ']') {
    ++text;
    size -= 2;
  }
  if (size == 0 || size >= HOST_MAX) return false;
  memcpy(host, text, size);
  host[size] = '\0';
  *port = (int)number;
  return true;
}

static bool is_name(const char* text) {
  size_t allowed = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
  return allowed == strlen(text) && allowed >= 1 && allowed <= NAME_MAX_CHARS;
}

static bool set_defaults(Options* options) {
  *options = (Options){.host = "127.0.0.1", .port = 9090, .session_timeout_s = 600};
  long memory_mib = facts_memory_total_mib();
  options->memory_limit_bytes = (uint64_t)(memory_mib > 0 ? memory_mib : 1024) * 3 / 4 << 20;
  const char* temporary = getenv("TMPDIR");
  if (!take_text(temporary && *temporary ? temporary : "/tmp", options->workdir, PATH_MAX)) {
    return false;
  }
  char program[PATH_MAX];
  ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
  if (size <= 0) return false;
  program[size] = '\0';
  *strrchr(program, '/') = '\0';
  return snprintf(options->side_folder, PATH_MAX, "%s/sidelibs", program) < PATH_MAX;
}

// Handles one option; returns an exit code on failure, else -1.
static int take(int option, const char* value, Options* options) {
  double number;
  char reason[PATH_MAX + 256];
  switch (option) {
    case 'h':
      if (take_text(value, options->host, HOST_MAX)) return -1;
      return usage("--host", value, "is too long");
    case 'p':
      if (!parse_number(value, 0, 65535, &number)) {
        return usage("--port", value, "give a number from 0 to 65535");
      }
      options->port = (int)number;
      return -1;
    case 't':
      if (split_address(value, options->tracker_host, &options->tracker_port)) return -1;
      return usage("--tracker", value, "give HOST:PORT");
    case 'k':
      if (is_name(value) && take_text(value, options->key, sizeof options->key)) return -1;
      return usage("--key", value, "give 1 to 64 letters, digits, '.', '_' or '-'");
    case 'a':
      if (take_text(value, options->advertise, HOST_MAX)) return -1;
      return usage("--advertise", value, "is too long");
    case 's':
      if (auth_read_key(value, &options->auth, reason, sizeof reason)) return -1;
      fprintf(stderr, "agent: %s\n", reason);
      return EXIT_USAGE;
    case 'l':
      if (!parse_number(value, 1, 604800, &options->session_timeout_s)) {
        return usage("--session-timeout-s", value, "give 1 to 604800 seconds");
      }
      return -1;
    case 'm':
      if (!parse_number(value, 64, 1 << 24, &number)) {
        return usage("--memory-limit-mib", value, "give 64 MiB or more");
      }
      options->memory_limit_bytes = (uint64_t)number << 20;
      return -1;
    case 'w':
      if (take_text(value, options->workdir, PATH_MAX)) return -1;
      return usage("--workdir", value, "is too long");
    case 'f':
      if (take_text(value, options->port_file, PATH_MAX)) return -1;
      return usage("--port-file", value, "is too long");
    case 'F':
      options->facts = true;
      return -1;
    case '?':
      fprintf(stderr, "agent: see agent --help\n");
      return EXIT_USAGE;
    default:
      fputs(kHelp, stdout);
      return EXIT_SUCCESS;
  }
}

int options_parse(int argc, char** argv, Options* options) {
  static const struct option kOptions[] = {
      {"host", required_argument, NULL, 'h'},
      {"port", required_argument, NULL, 'p'},
      {"tracker", required_argument, NULL, 't'},
      {"key", required_argument, NULL, 'k'},
      {"advertise", required_argument, NULL, 'a'},
      {"auth-key-file", required_argument, NULL, 's'},
      {"session-timeout-s", required_argument, NULL, 'l'},
      {"memory-limit-mib", required_argument, NULL, 'm'},
      {"workdir", required_argument, NULL, 'w'},
      {"port-file", required_argument, NULL, 'f'},
      {"facts", no_argument, NULL, 'F'},
      {"help", no_argument, NULL, 'H'},
      {NULL, 0, NULL, 0},
  };
  if (!set_defaults(options)) {
    fprintf(stderr, "agent: it is not known where this program lies; mount /proc\n");
    return EXIT_FAILURE;
  }
  for (int option; (option = getopt_long(argc, argv, "", kOptions, NULL)) != -1;) {
    int code = take(option, optarg, options);
    if (code >= 0) return code;
  }
  if (optind < argc) return usage("argument", argv[optind], "there are only options");
  if (*options->tracker_host && !*options->key) {
    return usage("--tracker", options->tracker_host, "needs --key NAME, the board's kind");
  }
  return -1;
}
