// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

const inside = "SANDBOX_TEST_INSIDE"

func TestMain(m *testing.M) {
	reexec.Init()
	os.Exit(m.Run())
}

// isolated runs the calling test again in namespaces of its own, as the lab's
// supervisor is, and tells whether this is that run.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", `mount -t tmpfs tmpfs /run && exec "$0" "$@"`, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// sh runs a script in a sandbox and returns its output and exit code.
func sh(t *testing.T, spec Spec, script string) (string, int) {
	t.Helper()
	spec.Argv = []string{"sh", "-c", script}
	var out bytes.Buffer
	process, err := Start(spec, Streams{Out: &out, Err: &out})
	if err != nil {
		t.Fatal(err)
	}
	code := process.Wait()
	return out.String(), code
}

func TestRoot(t *testing.T) {
	if !isolated(t) {
		return
	}
	secret := filepath.Join(t.TempDir(), "secret")
	data := filepath.Join(t.TempDir(), "data")
	for path, content := range map[string]string{secret: "mine", data: "yours"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec := Spec{
		Hostname: "box",
		Root: &Root{Mounts: []Mount{
			{Source: data, Target: "/data/file", ReadOnly: true},
			{Source: data, Target: "/etc/made/up/file"},
			{Target: "/var/run/scratch"},
		}},
	}
	for _, test := range []struct{ name, script, want string }{
		{"process 1 of its own", "echo $$", "1\n"},
		{"host name", "cat /proc/sys/kernel/hostname", "box\n"},
		{"a file", "cat /data/file", "yours"},
		{"a file where the host has no place", "cat /etc/made/up/file", "yours"},
		{"the rest of /etc", "grep -c ^root: /etc/passwd", "1\n"},
		{"a directory over a link", "touch /run/scratch/x && echo /var/run/scratch/*", "/var/run/scratch/x\n"},
		{"not the host's files", "cat " + secret + " 2>/dev/null; ls /root /home", "/home:\n\n/root:\n"},
		{"a read-only mount", "echo x 2>/dev/null >/data/file || echo no", "no\n"},
		{"read-only programs", "touch /usr/bin/x 2>/dev/null || echo no", "no\n"},
		{"read-only sysctls", "echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward || echo no", "no\n"},
		{"a place of its own", "echo x >/tmp/x && cat /tmp/x", "x\n"},
		{"devices", "echo x >/dev/null && head -c1 /dev/zero | wc -c", "1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, code := sh(t, spec, test.script); got != test.want || code != 0 {
				t.Errorf("%s\ngave %q, exit code %d, want %q", test.script, got, code, test.want)
			}
		})
	}
	if _, err := os.Stat("/etc/made"); err == nil {
		t.Error("the host's /etc was changed")
	}
	spec.Root.ReadOnly = true
	if got, _ := sh(t, spec, "touch /tmp/x 2>/dev/null || echo no; touch /run/scratch/x && echo yes"); got != "no\nyes\n" {
		t.Errorf("read-only root: %q", got)
	}
}

func TestPrivileges(t *testing.T) {
	if !isolated(t) {
		return
	}
	// uname(2) fails.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_UNAME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	const status = "uname >/dev/null 2>&1 || echo 'uname: refused;'; grep -E '^(Uid|Gid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\t ' ' ' | tr '\n' ';'"
	for _, test := range []struct {
		name string
		spec Spec
		want []string
	}{
		{"none", Spec{Root: &Root{}, Capabilities: []string{}, NoNewPrivileges: true}, []string{"CapEff: 0000000000000000;", "CapBnd: 0000000000000000;", "NoNewPrivs: 1;"}},
		{"two", Spec{Root: &Root{}, Capabilities: []string{"NET_ADMIN", "CAP_NET_RAW"}}, []string{"CapEff: 0000000000003000;", "CapBnd: 0000000000003000;", "NoNewPrivs: 0;"}},
		{"a user", Spec{Root: &Root{}, UID: 65532, GID: 65532}, []string{"Uid: 65532 65532 65532 65532;", "Gid: 65532 65532 65532 65532;", "CapEff: 0000000000000000;"}},
		{"a user, filtered", Spec{Root: &Root{}, UID: 65532, GID: 65532, Seccomp: filter}, []string{"uname: refused;", "Uid: 65532", "NoNewPrivs: 0;", "Seccomp: 2;"}},
		{"no new privileges, filtered", Spec{Root: &Root{}, Capabilities: []string{}, NoNewPrivileges: true, Seccomp: filter}, []string{"uname: refused;", "NoNewPrivs: 1;", "Seccomp: 2;"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _ := sh(t, test.spec, status)
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("%s\nwant in it %s", got, want)
				}
			}
		})
	}
	if _, err := Start(Spec{Argv: []string{"true"}, Capabilities: []string{"FLY"}}, Streams{}); err == nil || !strings.Contains(err.Error(), "FLY") {
		t.Errorf("unknown capability: %v", err)
	}
}

func TestEnds(t *testing.T) {
	if !isolated(t) {
		return
	}
	if _, code := sh(t, Spec{Root: &Root{}}, "exit 7"); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	for name, argv := range map[string][]string{"no such program": {"nowhere-to-be-found"}, "no such file": {"/nowhere"}} {
		if _, err := Start(Spec{Argv: argv, Root: &Root{}}, Streams{}); err == nil || !strings.Contains(err.Error(), argv[0]) {
			t.Errorf("%s: %v, want an error that names it", name, err)
		}
	}
	// Killing the program kills what it has started.
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	process, err := Start(Spec{Argv: []string{"sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"}, Root: &Root{}}, Streams{Files: []*os.File{write}})
	if err != nil {
		t.Fatal(err)
	}
	write.Close()
	process.Kill()
	if code := process.Wait(); code != 128+int(unix.SIGKILL) {
		t.Errorf("exit code %d, want %d", code, 128+int(unix.SIGKILL))
	}
	if n, _ := read.Read(make([]byte, 1)); n != 0 { // end of file: nobody holds the other end
		t.Error("the pipe has something in it")
	}
}
