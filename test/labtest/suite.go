// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/observe"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/seccomp"
)

// Suite is a lab that the tests of a package share.
type Suite struct {
	// Name tells the lab apart from others on this machine.
	Name string
	// Preparation and Test bound the time of Prepare and of one test; Patience is how
	// long addresses and answers may take to be as they should.
	Preparation, Test, Patience time.Duration
	// Change makes the lab different from the usual one; may be nil.
	Change func(context.Context, *lab.Setup) error
	// Prepare installs what the tests need. Cluster, API and LAN are there already.
	Prepare func(context.Context) error

	// Cluster is nil when no lab can be had; Need then skips the test.
	Cluster *lab.Lab
	API     client.Client
	// LAN watches it from the client's machine.
	LAN *observe.Watch

	whyNone string
}

// Main runs the tests in a lab and does not return. Where none can be had every
// test is skipped, but under REQUIRE_KERNEL=1 the suite fails.
func (s *Suite) Main(m *testing.M) {
	reexec.Init()
	flag.Parse()
	ctrllog.SetLogger(logr.Discard()) // the client's: the API server's warnings about Endpoints
	inside, err := lab.Inside()
	if err == nil && inside == nil {
		if testing.Short() {
			s.whyNone = "-short"
		} else if err := lab.Possible(); err != nil && os.Getenv("REQUIRE_KERNEL") != "1" {
			s.whyNone = err.Error()
		}
	}
	if s.whyNone != "" {
		os.Exit(m.Run())
	}
	change := func(ctx context.Context, setup *lab.Setup) (err error) {
		if setup.RuntimeDefault, err = seccomp.RuntimeDefault(); err != nil || s.Change == nil {
			return err
		}
		return s.Change(ctx, setup)
	}
	os.Exit(lab.SuiteWith(s.Name, change, func(ctx context.Context, l *lab.Lab) int {
		if err := s.prepare(ctx, l); err != nil {
			fmt.Fprintf(os.Stderr, "%s: prepare the lab: %v\n", s.Name, err)
			return 1
		}
		defer s.LAN.Close()
		return m.Run()
	}))
}

func (s *Suite) prepare(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, s.Preparation)
	defer cancel()
	scheme := clientgoscheme.Scheme
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	var err error
	if s.API, err = client.New(l.REST, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	if s.LAN, err = observe.Start(l.Machine(lab.Client), lab.Interface); err != nil {
		return err
	}
	s.Cluster = l
	return s.Prepare(ctx)
}

// Sample applies manifests, as soon as the webhooks let it.
func (s *Suite) Sample(ctx context.Context, apply func(context.Context) error) error {
	return s.Cluster.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		err := apply(ctx)
		return err == nil, "", err
	})
}

// Need skips a test where no lab can be had, and bounds its time.
func (s *Suite) Need(t *testing.T) context.Context {
	t.Helper()
	if s.Cluster == nil {
		t.Skip("no lab here: " + s.whyNone)
	}
	ctx, cancel := context.WithTimeout(t.Context(), s.Test)
	t.Cleanup(cancel)
	return ctx
}

// Create makes objects, and deletes them with the test, and what belongs to them. It
// waits for one of the same name that is being deleted, as with go test -count.
func (s *Suite) Create(t *testing.T, ctx context.Context, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		testkit.Eventually(t, s.Patience, fmt.Sprintf("create %T %s", object, object.GetName()), func() error {
			err := s.API.Create(ctx, object)
			if err != nil && !apierrors.IsAlreadyExists(err) {
				t.Fatalf("create %T %s: %v", object, object.GetName(), err)
			}
			return err
		})
		t.Cleanup(func() {
			err := s.API.Delete(context.Background(), object, client.PropagationPolicy("Background"))
			if client.IgnoreNotFound(err) != nil {
				t.Errorf("delete %T %s: %v", object, object.GetName(), err)
			}
		})
	}
}

// Local gives a Service the external traffic policy Local.
func Local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// DualStack gives a Service both families.
func DualStack(s *corev1.Service) {
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.Spec.IPFamilyPolicy = &policy
}

// Ready waits for a LoadBalancer Service's addresses, one a family, and returns
// them.
func (s *Suite) Ready(t *testing.T, ctx context.Context, service *corev1.Service) []netip.Addr {
	t.Helper()
	var addresses []netip.Addr
	testkit.Eventually(t, s.Patience, "address of "+service.Name, func() error {
		if err := s.API.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		addresses = nil
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			addresses = append(addresses, netip.MustParseAddr(ingress.IP))
		}
		if len(addresses) < len(service.Spec.ClusterIPs) {
			return fmt.Errorf("%d addresses: %v", len(addresses), service.Status.Conditions)
		}
		return nil
	})
	return addresses
}

// Frontend returns address:port, in the form that dialers take.
func Frontend(address netip.Addr, port int32) string {
	return netip.AddrPortFrom(address, uint16(port)).String()
}
