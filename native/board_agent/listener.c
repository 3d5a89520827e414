#define _GNU_SOURCE
#include "listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

// A client whose machine has vanished is noticed after about this long.
enum { IDLE_S = 10, PROBE_S = 5, PROBES = 3, UNACKNOWLEDGED_MS = 25000, BACKLOG = 64 };

static bool is_loopback(const struct sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const struct sockaddr_in* v4 = (const void*)address;
    return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
  }
  const struct sockaddr_in6* v6 = (const void*)address;
  return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

static bool write_port(const char* path, int port) {
  char temporary[PATH_MAX];
  if (snprintf(temporary, sizeof temporary, "%s.part", path) >= (int)sizeof temporary) {
    errno = ENAMETOOLONG;
    return false;
  }
  FILE* file = fopen(temporary, "we");
  if (file == NULL) return false;
  bool good = fprintf(file, "%d\n", port) > 0;
  if (fclose(file) != 0) good = false;
  return good && rename(temporary, path) == 0;
}

static int bind_first(const struct addrinfo* found, const Options* options) {
  int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int yes = 1;
  if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
    fprintf(stderr, "agent: %s:%d cannot be listened at: %s; choose another --host or --port\n",
            options->host, options->port, strerror(errno));
    if (fd >= 0) close(fd);
    return -EXIT_FAILURE;
  }
  return fd;
}

static int port_of(int fd) {
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  if (getsockname(fd, (struct sockaddr*)&address, &size) != 0) return 0;
  if (address.ss_family == AF_INET) return ntohs(((struct sockaddr_in*)&address)->sin_port);
  return ntohs(((struct sockaddr_in6*)&address)->sin6_port);
}

int listener_open(const Options* options, int* port) {
  char text[8];
  struct addrinfo* found = NULL;
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
  snprintf(text, sizeof text, "%d", options->port);
  if (getaddrinfo(options->host, text, &hints, &found) != 0 || found == NULL) {
    fprintf(stderr, "agent: --host '%s' is no address of this machine\n", options->host);
    return -EXIT_USAGE;
  }
  if (!is_loopback(found->ai_addr) && !options->auth.size) {
    fprintf(stderr,
            "agent: --host %s can be reached from other machines and asks for --auth-key-file; "
            "give one, or listen at 127.0.0.1 and come in by ssh\n",
            options->host);
    freeaddrinfo(found);
    return -EXIT_USAGE;
  }
  int fd = bind_first(found, options);
  freeaddrinfo(found);
  if (fd < 0) return fd;
  *port = port_of(fd);
  if (*options->port_file && !write_port(options->port_file, *port)) {
    fprintf(stderr, "agent: --port-file %s cannot be written: %s\n", options->port_file,
            strerror(errno));
    close(fd);
    return -EXIT_FAILURE;
  }
  return fd;
}

int listener_accept(int fd) {
  int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
  if (connection < 0) return -1;
  static const struct {
    int level, name, value;
  } kOptions[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
                  {IPPROTO_TCP, TCP_KEEPIDLE, IDLE_S},
                  {IPPROTO_TCP, TCP_KEEPINTVL, PROBE_S},
                  {IPPROTO_TCP, TCP_KEEPCNT, PROBES},
                  {IPPROTO_TCP, TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS},
                  {IPPROTO_TCP, TCP_NODELAY, 1}};
  for (size_t i = 0; i < sizeof kOptions / sizeof *kOptions; ++i) {
    if (setsockopt(connection, kOptions[i].level, kOptions[i].name, &kOptions[i].value,
                   sizeof(int)) != 0) {
      perror("agent: setsockopt");
    }
  }
  return connection;
}
