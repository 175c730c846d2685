package daemon

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

const (
	// pingWithin bounds how long a registry or a member may take to answer. A
	// registry that takes longer is of no use to a runtime either.
	pingWithin = 5 * time.Second
	// checkedAtOnce bounds how many are asked at once, and maxDialled how many
	// members are: of a large fleet a part tells the same.
	checkedAtOnce = 8
	maxDialled    = 32
	// skewWarn and skewFail are how far the clock may be off: capabilities live
	// for two minutes and the tokens of registries for five, and the clocks that
	// it is compared with tell whole seconds.
	skewWarn = 10 * time.Second
	skewFail = time.Minute
	// renewWithin is how long before its end a certificate is warned about.
	renewWithin = 30 * 24 * time.Hour
	// recheckAfter is how old an answer may be that several callers share. Each
	// look asks registries, and a loop of somebody's must not become theirs.
	recheckAfter = 2 * time.Second
)

// Checks looks at each thing that the node needs and says what it found and
// what to do about it. It asks registries and members, each for pingWithin at
// most, and changes nothing.
func (d *Daemon) Checks(ctx context.Context) []admin.Check {
	d.mu.Lock()
	members := slices.Clone(d.members)
	d.mu.Unlock()
	checks := []admin.Check{
		readyCheck(d.Ready()),
		fleetCheck(len(d.cfg.Gossip.Join) > 0, members),
		d.ownerCheck(members),
		d.peersCheck(ctx, members),
	}
	origins, skews := d.originChecks(ctx)
	checks = append(checks, origins...)
	checks = append(checks, clockCheck(skews), spaceCheck(d.cache.Use()), inodesCheck(d.cfg.Data))
	checks = append(checks, d.cfg.fileChecks(time.Now())...)
	return checks
}

// sharedChecks returns Checks for the admin door: callers at the same time get
// the same answer.
func (d *Daemon) sharedChecks() func(context.Context) []admin.Check {
	var mu sync.Mutex // held while looking
	var last []admin.Check
	var at time.Time
	return func(ctx context.Context) []admin.Check {
		mu.Lock()
		defer mu.Unlock()
		if last == nil || time.Since(at) > recheckAfter {
			last = d.Checks(context.WithoutCancel(ctx)) // who waits for it is not only who asked
			at = time.Now()
		}
		return last
	}
}

func check(name string, state admin.CheckState, detail string) admin.Check {
	return admin.Check{Name: name, State: state, Detail: detail}
}

// advise returns c with what to do about it.
func advise(c admin.Check, format string, args ...any) admin.Check {
	c.Advice = fmt.Sprintf(format, args...)
	return c
}

func readyCheck(err error) admin.Check {
	if err != nil {
		return advise(check("ready", admin.CheckFail, err.Error()), "wait a few seconds and look again; if it stays so, the checks below or the node's log say why")
	}
	return check("ready", admin.CheckOK, "the node does its work")
}

// fleetCheck is about the view of the gossip.
func fleetCheck(joins bool, members []proto.Member) admin.Check {
	schedulers := 0
	for _, m := range members {
		if m.Roles&proto.RoleScheduler != 0 {
			schedulers++
		}
	}
	switch {
	case len(members) <= 1 && joins:
		return advise(check("fleet", admin.CheckFail, "none of gossip.join is a member of the same fleet"),
			"see that they run, that the gossip port is open between them and this node for TCP and UDP, and that gossip.secretFile has the same secret everywhere; the log says what each answered")
	case len(members) <= 1:
		return check("fleet", admin.CheckOK, "a fleet of one: gossip.join names nobody")
	}
	return check("fleet", admin.CheckOK, fmt.Sprintf("%d members, %d of them schedulers", len(members), schedulers))
}

// ownerCheck is about who schedules. Which digest it asks for is of no
// importance: the candidates are the same for all.
func (d *Daemon) ownerCheck(members []proto.Member) admin.Check {
	sample := proto.DigestOf([]byte("shoal doctor"))
	return schedulerCheck(d.client.Ready(), d.client.Owner(sample), d.self.ID, members)
}

func schedulerCheck(linked bool, owner, self string, members []proto.Member) admin.Check {
	if !linked || owner == "" {
		return advise(check("scheduler", admin.CheckFail, "no member that schedules can be reached"),
			"see that the peer port of the schedulers, or of the other daemons if there is none, is open for this node; until then each pull goes to its registry")
	}
	if owner == self {
		return check("scheduler", admin.CheckOK, "this node schedules")
	}
	for _, m := range members {
		if m.ID == owner {
			return check("scheduler", admin.CheckOK, fmt.Sprintf("connected; such as %s (%s) schedules", m.Name, m.Addr))
		}
	}
	return check("scheduler", admin.CheckOK, "connected")
}

// peersCheck connects to the peer ports of members, this node's own included:
// what it advertises must lead back to it.
func (d *Daemon) peersCheck(ctx context.Context, members []proto.Member) admin.Check {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b proto.Member) int { // itself first
		return cmp.Or(btoi(b.ID == d.self.ID)-btoi(a.ID == d.self.ID), strings.Compare(a.ID, b.ID))
	})
	if len(members) > maxDialled {
		members = members[:maxDialled]
	}
	errs := make([]error, len(members))
	each(len(members), func(i int) {
		ctx, cancel := context.WithTimeout(ctx, pingWithin)
		defer cancel()
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", members[i].Addr)
		if err == nil {
			err = conn.Close()
		}
		errs[i] = err
	})
	return dialCheck(d.self.ID, members, errs)
}

func dialCheck(self string, members []proto.Member, errs []error) admin.Check {
	var failed []string
	own := false
	for i, err := range errs {
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", members[i].Name, err))
			own = own || members[i].ID == self
		}
	}
	switch {
	case len(members) == 0:
		return check("peers", admin.CheckSkip, "no member is known yet")
	case len(failed) == 0 && len(members) == 1:
		return check("peers", admin.CheckOK, "this node's own peer port answers at "+members[0].Addr)
	case len(failed) == 0:
		return check("peers", admin.CheckOK, fmt.Sprintf("the peer ports of %d members answer, this node's own among them", len(members)))
	}
	c := check("peers", admin.CheckWarn, strings.Join(failed, "; "))
	if own {
		return advise(c, "this node cannot be reached at the address that it tells the others: set advertise to the IP address that they reach it at")
	}
	if len(failed) == len(members)-1 {
		c.State = admin.CheckFail
	}
	return advise(c, "open the TCP port of peer.listen between the members, and see what they have as advertise")
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// each calls f for 0 to n-1, a few at once, and returns when all have returned.
func each(n int, f func(int)) {
	var g errgroup.Group
	g.SetLimit(checkedAtOnce)
	for i := range n {
		g.Go(func() error { f(i); return nil })
	}
	_ = g.Wait() // f has its own errors
}

// originChecks asks each upstream whether it is there, and returns by how much
// this node's clock is ahead of those that tell the time.
func (d *Daemon) originChecks(ctx context.Context) ([]admin.Check, []time.Duration) {
	names := slices.DeleteFunc(d.upstreams(), func(n string) bool { return n == "*" })
	if d.origin.Offline() {
		return []admin.Check{check("origins", admin.CheckSkip, "the node was told to contact no registry (offline)")}, nil
	}
	checks, skews := make([]admin.Check, len(names)), make([]*time.Duration, len(names))
	each(len(names), func(i int) {
		ctx, cancel := context.WithTimeout(ctx, pingWithin)
		defer cancel()
		asked := time.Now()
		date, err := d.origin.Ping(ctx, names[i])
		took := time.Since(asked)
		checks[i] = originCheck(names[i], took, err)
		if err == nil && !date.IsZero() {
			// Its clock was read somewhere within the question, and within the second.
			skew := asked.Add(took / 2).Sub(date.Add(500 * time.Millisecond))
			skews[i] = &skew
		}
	})
	var known []time.Duration
	for _, s := range skews {
		if s != nil {
			known = append(known, *s)
		}
	}
	return checks, known
}

func originCheck(name string, took time.Duration, err error) admin.Check {
	name = "origin " + name
	if err != nil {
		return advise(check(name, admin.CheckFail, err.Error()),
			"see that this machine reaches it (DNS, firewall, proxy) and that upstreams has its right url and ca; what is in the cache or at peers is served meanwhile")
	}
	return check(name, admin.CheckOK, fmt.Sprintf("answers after %s", took.Round(time.Millisecond)))
}

// clockCheck compares this node's clock with those of the registries, of which
// some may be wrong themselves.
func clockCheck(skews []time.Duration) admin.Check {
	if len(skews) == 0 {
		return check("clock", admin.CheckSkip, "no registry has told the time")
	}
	slices.Sort(skews)
	skew := skews[len(skews)/2]
	ahead := "ahead of"
	if skew < 0 {
		ahead = "behind"
	}
	c := check("clock", admin.CheckOK, "agrees with that of the registries")
	if skew.Abs() >= skewWarn {
		c = advise(check("clock", admin.CheckWarn, fmt.Sprintf("%s %s that of the registries", skew.Abs().Round(time.Second), ahead)),
			"run an NTP client: tokens, certificates and the fleet's capabilities are good for minutes")
	}
	if skew.Abs() >= skewFail {
		c.State = admin.CheckFail
	}
	return c
}

// spaceCheck is about the room for blobs.
func spaceCheck(u cache.Use) admin.Check {
	size := func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
	detail := fmt.Sprintf("%s free, of which %s are left alone; the cache has %s", size(u.Free), size(u.Reserve), size(u.Bytes))
	if u.Quota > 0 {
		detail += " of " + size(u.Quota)
	}
	switch c := check("disk", admin.CheckOK, detail); {
	case u.Free <= u.Reserve && u.Bytes == 0:
		c.State = admin.CheckFail
		return advise(c, "nothing can be kept: free some space, put data on another file system, or lower cache.reserve")
	case u.Quota > 0 && u.PinnedBytes > u.Quota/10*9:
		c.State = admin.CheckWarn
		return advise(c, "what is pinned (%s) takes nearly all of cache.quota: take pins back (shoal cache pins) or raise it", size(u.PinnedBytes))
	case u.Free <= u.Reserve:
		c.State = admin.CheckWarn
		return advise(c, "the cache makes room by removing what was not used for longest; free some space, or lower cache.reserve")
	default:
		return c
	}
}

// inodesCheck is about the number of files, of which a blob is two.
func inodesCheck(dir string) admin.Check {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return advise(check("inodes", admin.CheckFail, err.Error()), "see that data is a folder of this machine")
	}
	return inodesLeft(uint64(st.Ffree), uint64(st.Files))
}

func inodesLeft(free, total uint64) admin.Check {
	if total == 0 || total == math.MaxUint64 {
		return check("inodes", admin.CheckOK, "the file system has no limit")
	}
	c := check("inodes", admin.CheckOK, fmt.Sprintf("%d of %d are free", free, total))
	switch {
	case free < 1000:
		c.State = admin.CheckFail
	case free < total/50:
		c.State = admin.CheckWarn
	default:
		return c
	}
	return advise(c, "the file system of data runs out of files: remove some, or use one that was made with more inodes")
}

// fileChecks are about the files that the configuration names: secrets that
// this process can read and others cannot, certificates and when they end.
func (c Config) fileChecks(now time.Time) []admin.Check {
	var checks []admin.Check
	if f := c.Gossip.SecretFile; f != "" {
		checks = append(checks, secretCheck("secret", f, MinSecret))
	} else if c.inFleet() {
		checks = append(checks, advise(check("secret", admin.CheckWarn, "the fleet has no secret: whoever reaches the gossip port is a member"),
			"make one (head -c 32 /dev/urandom | base64), copy it to all members and name it as gossip.secretFile"))
	}
	if f := c.Gossip.AllowFile; f != "" {
		k := check("members allowed", admin.CheckOK, f+" is readable")
		if _, err := os.ReadFile(f); err != nil {
			k = advise(check(k.Name, admin.CheckFail, err.Error()), "write the peer IDs of all members into it, one a line")
		}
		checks = append(checks, k)
	}
	for _, t := range c.Admin.Tokens {
		checks = append(checks, secretCheck("token "+t.Name, t.File, MinSecret))
	}
	certificates := map[string]string{"mirror.tls": c.Mirror.TLS.Cert, "admin.tls": c.Admin.TLS.Cert}
	trusted := map[string]string{"admin.clientCA": c.Admin.ClientCA}
	if c.Proxy.Listen != "" {
		cert, key := c.Proxy.files(c.Data)
		certificates["proxy.ca"] = cert
		checks = append(checks, secretCheck("proxy.key", key, 1))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		u := c.Upstreams[name]
		if u.PasswordFile != "" {
			checks = append(checks, secretCheck("credentials "+name, u.PasswordFile, 1))
		}
		if u.CredentialsFile != "" {
			checks = append(checks, secretCheck("credentials "+name, credentialsIn(u.CredentialsFile), 1))
		}
		trusted[name] = u.CA
	}
	for _, name := range slices.Sorted(maps.Keys(certificates)) {
		if f := certificates[name]; f != "" {
			checks = append(checks, certificateCheck("certificate "+name, f, now, soonest))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(trusted)) {
		if f := trusted[name]; f != "" {
			checks = append(checks, certificateCheck("ca "+name, f, now, latest))
		}
	}
	return checks
}

// credentialsIn returns the file of a folder that Kubernetes mounts a secret in,
// or the file itself.
func credentialsIn(file string) string {
	for _, n := range []string{".dockerconfigjson", "config.json", ".dockercfg"} {
		if f := filepath.Join(file, n); exists(f) {
			return f
		}
	}
	return file
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// secretCheck sees that a file can be read, has at least so many bytes, and
// cannot be read by everybody. It tells nothing of what is in it.
func secretCheck(name, file string, least int) admin.Check {
	data, err := os.ReadFile(file)
	if err != nil {
		return advise(check(name, admin.CheckFail, err.Error()), "let user %d, as whom the node runs, read it", os.Getuid())
	}
	if n := len(strings.TrimSpace(string(data))); n < least {
		return advise(check(name, admin.CheckFail, fmt.Sprintf("%s has %d bytes, at least %d are needed", file, n, least)), "write it anew")
	}
	info, err := os.Stat(file)
	// The files of a mounted secret are readable by all, in a pod that has one user.
	if err == nil && info.Mode().Perm()&0o004 != 0 && !exists(filepath.Join(filepath.Dir(file), "..data")) {
		return advise(check(name, admin.CheckWarn, file+" can be read by every user of this machine"), "chmod 600 %s", file)
	}
	return check(name, admin.CheckOK, file+" is readable")
}

// soonest returns the certificate of a chain that ends first, and with it the
// chain; latest that of a bundle of CAs that ends last: the others are of the past.
func soonest(certs []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

func latest(certs []*x509.Certificate) *x509.Certificate {
	return slices.MaxFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// certificateCheck sees that the certificate of a PEM file that counts is of
// this time.
func certificateCheck(name, file string, now time.Time, counts func([]*x509.Certificate) *x509.Certificate) admin.Check {
	data, err := os.ReadFile(file)
	if err != nil {
		c := advise(check(name, admin.CheckFail, err.Error()), "let user %d, as whom the node runs, read it", os.Getuid())
		if name == "certificate proxy.ca" && errors.Is(err, fs.ErrNotExist) {
			c = advise(c, "make it: shoal ca init")
		}
		return c
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return advise(check(name, admin.CheckFail, file+": "+err.Error()), "write certificates in PEM form into it")
	}
	crt := counts(certs)
	c := check(name, admin.CheckOK, fmt.Sprintf("%s is good until %s", file, crt.NotAfter.UTC().Format(time.DateOnly)))
	switch {
	case now.Before(crt.NotBefore):
		c.State, c.Detail = admin.CheckFail, fmt.Sprintf("%s: %s begins at %s", file, crt.Subject, crt.NotBefore.UTC().Format(time.DateTime))
		return advise(c, "see whether the clock of this machine is right")
	case now.After(crt.NotAfter):
		c.State, c.Detail = admin.CheckFail, fmt.Sprintf("%s: %s expired at %s", file, crt.Subject, crt.NotAfter.UTC().Format(time.DateOnly))
	case now.Add(renewWithin).After(crt.NotAfter):
		c.State = admin.CheckWarn
	default:
		return c
	}
	return advise(c, "renew it; the files of a door are read anew when they change")
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		crt, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, crt)
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return certs, nil
}
