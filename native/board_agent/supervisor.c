#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "folder.h"
#include "journal.h"
#include "listener.h"
#include "opencl_probe.h"
#include "packet.h"
#include "peer.h"
#include "session.h"
#include "text.h"
#include "tracker.h"

enum { STRANGERS_MAX = 32, QUEUE_MAX = 64, PEERS_MAX = STRANGERS_MAX + QUEUE_MAX };
enum { SESSION_TICK_MS = 50, IDLE_TICK_MS = 200 };

static const double kHandshakeS = 10;
static const double kDrainS = 10;

typedef struct {
  const Options* options;
  int listener, port;
  WorkFolder work;
  Tracker tracker;
  OpenCLProbe probe;
  Session session;
  bool claimed;  // the session came with the tracker's match key
  Journal journal;
  Peer peers[PEERS_MAX];
  unsigned long arrivals;
} Agent;

static int g_wake[2] = {-1, -1};
static volatile sig_atomic_t g_stop;

static void on_signal(int number) {
  int code = errno;
  if (number != SIGCHLD) g_stop = number;
  // A full pipe wakes the loop just as well.
  if (write(g_wake[1], "", 1) < 0) errno = code;
  errno = code;
}

static bool catch_signals(void) {
  if (pipe2(g_wake, O_CLOEXEC | O_NONBLOCK) != 0) return false;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_NOCLDSTOP};
  sigemptyset(&action.sa_mask);
  struct sigaction ignore = {.sa_handler = SIG_IGN};
  sigemptyset(&ignore.sa_mask);
  return sigaction(SIGTERM, &action, NULL) == 0 && sigaction(SIGINT, &action, NULL) == 0 &&
         sigaction(SIGHUP, &action, NULL) == 0 && sigaction(SIGCHLD, &action, NULL) == 0 &&
         sigaction(SIGPIPE, &ignore, NULL) == 0;
}

static bool is_stranger(const Peer* peer) {
  return peer->state >= PEER_FIRST && peer->state <= PEER_KEY;
}

static Peer* oldest(Agent* agent, bool strangers) {
  Peer* found = NULL;
  for (int i = 0; i < PEERS_MAX; ++i) {
    Peer* peer = &agent->peers[i];
    if (strangers ? !is_stranger(peer) : peer->state != PEER_QUEUED) continue;
    if (found == NULL || peer->order < found->order) found = peer;
  }
  return found;
}

static int count_peers(const Agent* agent, bool strangers) {
  int count = 0;
  for (int i = 0; i < PEERS_MAX; ++i) {
    const Peer* peer = &agent->peers[i];
    count += strangers ? is_stranger(peer) : peer->state == PEER_QUEUED;
  }
  return count;
}

static Peer* free_place(Agent* agent) {
  for (int i = 0; i < PEERS_MAX; ++i) {
    if (agent->peers[i].state == PEER_NONE) return &agent->peers[i];
  }
  return NULL;
}

static void accept_peers(Agent* agent) {
  for (int i = 0; i < STRANGERS_MAX; ++i) {
    int fd = listener_accept(agent->listener);
    if (fd < 0) return;
    // Whoever has taken longest to say what he wants makes room.
    if (count_peers(agent, true) >= STRANGERS_MAX) peer_close(oldest(agent, true), false);
    Peer* place = free_place(agent);
    if (place == NULL) {
      close(fd);
      continue;
    }
    peer_open(place, fd, ++agent->arrivals, monotonic_s() + kHandshakeS);
  }
}

// A peer with the match key that does not become a session gives the key back.
static void drop_peer(Agent* agent, Peer* peer) {
  bool claimed = peer->state == PEER_QUEUED && *agent->options->key &&
                 strcmp(peer->request.key, agent->options->key) != 0;
  if (claimed) tracker_offer_again(&agent->tracker);
  peer_close(peer, false);
}

static void refuse(Peer* peer) {
  uint8_t code[4];
  put_u32(code, RPC_MISMATCH);
  if (send(peer->fd, code, sizeof code, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof code) {
    fprintf(stderr, "agent: a client with another key was not told so\n");
  }
  peer_close(peer, false);
}

static void queue_peer(Agent* agent, Peer* peer) {
  bool direct = strcmp(peer->request.key, agent->options->key) == 0;
  if (!direct && !tracker_claim(&agent->tracker, peer->request.key)) {
    refuse(peer);
    return;
  }
  peer->state = PEER_QUEUED;
  peer->deadline = 0;
  if (count_peers(agent, false) > QUEUE_MAX - 1) drop_peer(agent, peer);
}

static void answer_status(Agent* agent, Peer* peer) {
  journal_answer(&agent->journal, &agent->session, agent->options->key, count_peers(agent, false),
                 &agent->probe.devices, &peer->out);
  if (peer->out.failed) {
    peer_close(peer, false);
    return;
  }
  peer->state = PEER_ANSWER;
  peer->deadline = monotonic_s() + kHandshakeS;
}

static void step_peer(Agent* agent, Peer* peer, short events) {
  switch (peer_step(peer, &agent->options->auth, events)) {
    case PEER_GOES_ON:
      if (peer->deadline > 0 && monotonic_s() > peer->deadline) drop_peer(agent, peer);
      break;
    case PEER_GONE:
      drop_peer(agent, peer);
      break;
    case PEER_WANTS_STATUS:
      answer_status(agent, peer);
      break;
    case PEER_WANTS_SESSION:
      queue_peer(agent, peer);
      break;
  }
}

// Tells a client why, and closes once it has stopped sending: closing at once would take the message
// out of its hands as well.
static void tell_and_drain(Agent* agent, int fd, const char* message) {
  uint8_t packet[2048];
  size_t size = exception_packet(message, packet, sizeof packet);
  Peer* place = free_place(agent);
  bool told = size && send(fd, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
  if (!told || place == NULL || shutdown(fd, SHUT_WR) != 0) {
    close(fd);
    return;
  }
  peer_open(place, fd, ++agent->arrivals, monotonic_s() + kDrainS);
  place->state = PEER_DRAIN;
}

static bool greet(const Agent* agent, int fd) {
  uint8_t hello[8 + NAME_MAX_CHARS + 16];
  int size = snprintf((char*)hello + 8, sizeof hello - 8, "server:%s", agent->options->key);
  put_u32(hello, RPC_MAGIC);
  put_u32(hello + 4, (uint32_t)size);
  return send(fd, hello, (size_t)size + 8, MSG_DONTWAIT | MSG_NOSIGNAL) == size + 8;
}

static void start_next(Agent* agent) {
  Peer* peer;
  // At the end of a session all that the agent has started is ended: not the probe.
  if (agent->probe.pid) return;
  while (!agent->session.pid && (peer = oldest(agent, false)) != NULL) {
    int fd = peer->fd;
    Request request = peer->request;
    agent->claimed = strcmp(request.key, agent->options->key) != 0;
    if (!greet(agent, fd)) {
      drop_peer(agent, peer);
      continue;
    }
    char reason[DETAIL_MAX];
    peer_close(peer, true);
    if (session_start(&agent->session, agent->options, &agent->work, fd, &request, reason,
                      sizeof reason)) {
      continue;
    }
    fprintf(stderr, "agent: %s\n", reason);
    tell_and_drain(agent, fd, reason);
    if (agent->claimed) tracker_offer_again(&agent->tracker);
  }
}

static void finish_session(Agent* agent, const SessionEnd* end, bool client_gone) {
  Session* session = &agent->session;
  char label[LABEL_MAX];
  session_label(session, label);
  fprintf(stderr, "agent: session %lu (%s): %s after %.1f s%s%s\n", session->number, label,
          end->end, end->seconds, *end->detail ? ": " : "", end->detail);
  journal_add(&agent->journal, session, end);
  if (*end->message && !client_gone && !session->shared->unsent) {
    tell_and_drain(agent, session->fd, end->message);
  } else {
    close(session->fd);
  }
  if (agent->claimed) tracker_offer_again(&agent->tracker);
  agent->claimed = false;
}

static void check_session(Agent* agent, short events) {
  if (!agent->session.pid) return;
  SessionEnd end;
  bool client_gone = (events & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
  if (session_check(&agent->session, client_gone, &end)) finish_session(agent, &end, client_gone);
}

static void turn(Agent* agent) {
  struct pollfd polled[PEERS_MAX + 4];
  polled[0] = (struct pollfd){.fd = g_wake[0], .events = POLLIN};
  polled[1] = (struct pollfd){.fd = agent->listener, .events = POLLIN};
  polled[2] = (struct pollfd){.fd = agent->tracker.fd, .events = tracker_interest(&agent->tracker)};
  polled[3] = (struct pollfd){.fd = agent->session.pid ? agent->session.fd : -1,
                              .events = POLLRDHUP};
  for (int i = 0; i < PEERS_MAX; ++i) {
    const Peer* peer = &agent->peers[i];
    polled[4 + i] = (struct pollfd){.fd = peer->state == PEER_NONE ? -1 : peer->fd,
                                    .events = peer_interest(peer)};
  }
  int wait_ms = agent->session.pid || agent->probe.pid ? SESSION_TICK_MS : IDLE_TICK_MS;
  if (poll(polled, PEERS_MAX + 4, wait_ms) < 0) {
    if (errno != EINTR) perror("agent: poll");
    return;
  }
  char wakes[64];
  while (read(g_wake[0], wakes, sizeof wakes) > 0) continue;
  check_session(agent, polled[3].revents);
  opencl_probe_step(&agent->probe);
  for (int i = 0; i < PEERS_MAX; ++i) {
    Peer* peer = &agent->peers[i];
    if (peer->state != PEER_NONE && peer->fd == polled[4 + i].fd) {
      step_peer(agent, peer, polled[4 + i].revents);
    }
  }
  if (polled[1].revents) accept_peers(agent);
  start_next(agent);
  bool same = polled[2].fd == agent->tracker.fd;
  tracker_step(&agent->tracker, agent->options, agent->port, !agent->session.pid,
               same ? polled[2].revents : 0);
}

static void stop(Agent* agent) {
  SessionEnd end;
  // A killed process is gone in milliseconds; one that the kernel holds is left to it.
  for (int i = 0; agent->session.pid && i < 100; ++i) {
    session_kill(&agent->session, END_STOPPED);
    if (session_check(&agent->session, false, &end)) {
      finish_session(agent, &end, false);
    } else {
      usleep(20000);
    }
  }
  for (int i = 0; i < PEERS_MAX; ++i) {
    if (agent->peers[i].state != PEER_NONE) peer_close(&agent->peers[i], false);
  }
  opencl_probe_stop(&agent->probe);
  tracker_close(&agent->tracker);
  close(agent->listener);
  folder_close(&agent->work);
  if (*agent->options->port_file) unlink(agent->options->port_file);
}

int supervisor_run(const Options* options) {
  static Agent agent;  // too large for the stack
  agent.options = options;
  agent.journal.free_since = unix_s();
  for (int i = 0; i < PEERS_MAX; ++i) agent.peers[i].fd = -1;
  if (!catch_signals()) {
    fprintf(stderr, "agent: signals: %s\n", strerror(errno));
    return EXIT_FAILURE;
  }
  // What a session starts and leaves comes to this process, to be ended. QEMU's user mode cannot.
  if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0 && errno != EINVAL) {
    fprintf(stderr, "agent: left-over processes: %s\n", strerror(errno));
    return EXIT_FAILURE;
  }
  if (!folder_open(&agent.work, options->workdir)) {
    fprintf(stderr, "agent: --workdir %s: no folder can be made there: %s\n", options->workdir,
            strerror(errno));
    return EXIT_FAILURE;
  }
  agent.listener = listener_open(options, &agent.port);
  if (agent.listener < 0) {
    folder_close(&agent.work);
    return -agent.listener;
  }
  tracker_open(&agent.tracker, options);
  opencl_probe_start(&agent.probe, options->side_folder);
  fprintf(stderr, "agent: version %s, listening at %s:%d\n", AGENT_VERSION, options->host,
          agent.port);
  while (!g_stop) turn(&agent);
  stop(&agent);
  return EXIT_SUCCESS;
}
