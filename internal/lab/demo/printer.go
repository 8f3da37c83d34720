// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/causeway-lb/causeway/internal/lab"
)

// printer tells a person what happens, a line a step with the time since the
// start in front.
//
//	A bare-metal cluster in network namespaces
//	  3.1 s  API server answers at https://192.0.2.10:6443
//	         node-2 answers ARP: 192.0.2.200 is at 02:00:00:00:00:0c
type printer struct {
	mu     sync.Mutex
	out    io.Writer
	colour bool
	start  time.Time
}

func newPrinter(out io.Writer, colour bool) *printer {
	return &printer{out: out, colour: colour, start: time.Now()}
}

const (
	bold  = "1"
	faint = "2"
	red   = "31"
	green = "32"
)

func (p *printer) paint(style, text string) string {
	if !p.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (p *printer) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.out, text)
}

// Title begins a part.
func (p *printer) Title(format string, args ...any) {
	p.line("\n" + p.paint(bold, fmt.Sprintf(format, args...)))
}

// Step says that something has been reached.
func (p *printer) Step(format string, args ...any) {
	stamp := fmt.Sprintf("%5.1f s", time.Since(p.start).Seconds())
	p.line(p.paint(faint, stamp) + "  " + fmt.Sprintf(format, args...))
}

// Note adds to the step before.
func (p *printer) Note(format string, args ...any) {
	for _, line := range strings.Split(fmt.Sprintf(format, args...), "\n") {
		p.line("         " + line)
	}
}

// Success is the last word of a demonstration that worked.
func (p *printer) Success(format string, args ...any) {
	p.line("\n" + p.paint(bold+";"+green, fmt.Sprintf(format, args...)))
}

// Failure is the last word of one that didn't.
func (p *printer) Failure(err error) {
	p.line("\n" + p.paint(bold+";"+red, "Failed: ") + err.Error())
}

// howToLookAround tells what can be done with a lab that stays up.
func (p *printer) howToLookAround(l *lab.Lab, options Options) {
	command := options.Command
	if name := l.Setup.Name; name != "" {
		command += " --name " + name
	}
	p.Title("The lab is up. To look around, in another terminal:")
	environment := "export KUBECONFIG=" + l.Kubeconfig()
	if _, err := exec.LookPath("kubectl"); err != nil {
		environment += " PATH=$PATH:" + l.Setup.Programs // the one that was built for the lab
	}
	for _, row := range [][2]string{
		{environment, "then kubectl works, and bin/causeway explain NAMESPACE/SERVICE"},
		{command + " shell client", "a shell on the LAN's client: curl http://192.0.2.200:30001"},
		{command + " shell node-1", "on a node: nft list ruleset, ip route, tcpdump -ni eth0"},
		{command + " shell pod/go-http", "in a Pod"},
		{command + " logs causeway-system/causeway-agent", "what a Pod printed"},
		{command + " node off node-1", "pull a node's plug; `node on` puts it back"},
	} {
		p.line(fmt.Sprintf("  %s\n      %s", row[0], p.paint(faint, row[1])))
	}
	p.line("\nCtrl-C ends it.")
}
