package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	// helperTimeout bounds one run of a credential helper: those of clouds ask
	// over the network.
	helperTimeout = 10 * time.Second
	// helperGrace is how long the pipes of a helper that has ended are waited for,
	// which something that it left behind may hold open.
	helperGrace = time.Second
	// helperTTL is how long an answer is used, and helperFailedTTL how long a
	// failure: many fetches at once must not be many processes at once.
	helperTTL       = time.Minute
	helperFailedTTL = 5 * time.Second
	// maxHelperAnswer bounds an answer, in bytes.
	maxHelperAnswer = 64 << 10
)

// helperName is what may follow "docker-credential-". There is no way from it to
// a program outside PATH.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// helpers asks docker's credential helpers, one at a time, and remembers what
// they answered.
type helpers struct {
	// turn has one element, which whoever asks takes; see token. The fields
	// below are for whoever has it.
	turn    chan struct{}
	stamp   string // of the file that named the helpers
	answers map[helperQuestion]helperAnswer
}

type helperQuestion struct{ helper, host string }

type helperAnswer struct {
	cred  credential
	err   error
	until time.Time
}

func (h *helpers) init() {
	h.turn = make(chan struct{}, 1)
	h.turn <- struct{}{}
	h.answers = make(map[helperQuestion]helperAnswer)
}

// get returns what a helper, which the file of the given stamp names, has for a
// host; the zero credential if that is nothing. It blocks until the helper has
// answered, for 10 s at most. An error is an *attemptError that has none of the
// helper's output, or ctx's.
func (h *helpers) get(ctx context.Context, stamp, helper, host string) (credential, error) {
	select {
	case <-h.turn:
	case <-ctx.Done():
		return credential{}, ctx.Err()
	}
	defer func() { h.turn <- struct{}{} }()
	if h.stamp != stamp {
		h.stamp = stamp
		clear(h.answers)
	}
	q := helperQuestion{helper, host}
	if a, ok := h.answers[q]; ok && time.Now().Before(a.until) {
		return a.cred, a.err
	}
	cred, err := runHelper(ctx, helper, host)
	if ctx.Err() != nil {
		return credential{}, ctx.Err() // says nothing about the helper
	}
	ttl := helperTTL
	if err != nil {
		ttl = helperFailedTTL
	}
	h.answers[q] = helperAnswer{cred, err, time.Now().Add(ttl)}
	return cred, err
}

// runHelper asks one helper (docker-credential-helpers, "Development"): the
// server on standard input, the answer as JSON on standard output. It runs with
// this process's environment, where helpers find their own login.
func runHelper(ctx context.Context, helper, host string) (credential, error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program := "docker-credential-" + helper
	fail := func(format string, args ...any) (credential, error) {
		return credential{}, denied("credential helper %s for %s: %s", program, host, fmt.Sprintf(format, args...))
	}
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(helperServer(host))
	var out bounded
	cmd.Stdout = &out // its standard error may have anything in it, and is dropped
	// It may have started others, which end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = helperGrace
	err := cmd.Run()
	switch {
	case out.over:
		return fail("its answer has more than %d bytes", maxHelperAnswer)
	case ctx.Err() != nil:
		return fail("no answer within %s", helperTimeout)
	case errors.Is(err, exec.ErrNotFound):
		return fail("not found in PATH")
	case err != nil && bytes.HasPrefix(out.buf.Bytes(), []byte("credentials not found")):
		return credential{}, nil
	case err != nil:
		return fail("it failed; run it by hand to see why: echo %s | %s get", helperServer(host), program)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.buf.Bytes(), &answer) != nil {
		return fail("an answer that is not JSON")
	}
	if answer.Username == "<token>" {
		return credential{identityToken: answer.Secret}, nil
	}
	return credential{username: answer.Username, password: answer.Secret}, nil
}

// helperServer returns how helpers know a host. Docker Hub's name there is from
// the days of its first API.
func helperServer(host string) string {
	if host == "index.docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}

// A bounded keeps up to maxHelperAnswer bytes and fails when there are more.
type bounded struct {
	buf  bytes.Buffer
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.over = b.over || b.buf.Len()+len(p) > maxHelperAnswer; b.over {
		return 0, errors.New("too much")
	}
	return b.buf.Write(p)
}
