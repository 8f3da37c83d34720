// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/causeway-lb/causeway/internal/lab/pki"
)

// Config is what a kubelet needs; it crosses to the node's process as JSON.
type Config struct {
	// Node is the name to register under.
	Node string
	// Addresses are the node's InternalIPs, at most one a family.
	Addresses []netip.Addr
	// PodCIDRs are where Pods' addresses come from, at most one a family, IPv4
	// first if there.
	PodCIDRs []netip.Prefix
	// Labels and Taints to register with. NodeRestriction limits the labels.
	Labels map[string]string
	Taints []corev1.Taint

	// Server is the API server's URL; Authority its certificate authority in
	// PEM; Client this node's certificate.
	Server    string
	Authority []byte
	Client    pki.Pair
	// Serving is the certificate of the kubelet's own port, 10250.
	Serving pki.Pair

	// ServiceHost and ServicePort are the ClusterIP of the Service kubernetes,
	// for Pods' environment.
	ServiceHost string
	ServicePort uint16
	// DNS is the address of the cluster's DNS server; invalid means none.
	DNS netip.Addr
	// Images maps an image's name, without registry and tag, to a program.
	Images map[string]Image
	// RuntimeDefault is the seccomp profile of that name; empty means none.
	RuntimeDefault []unix.SockFilter
	// Logs is the directory for containers' logs, and Runtime the directory
	// where a file per container holds its process id as the node sees it.
	Logs, Runtime string
	// Version is reported as the kubelet's.
	Version string
	// LeaseInterval is how often the node's lease is renewed. Zero means 10 s.
	LeaseInterval time.Duration
}

// Image is what stands for a container image.
type Image struct {
	// Files maps paths in the container to paths of the host.
	Files map[string]string
	// Entrypoint, Args, Env ("NAME=value"), Dir and UID are as in an image.
	Entrypoint, Args, Env []string
	Dir                   string
	UID                   int
}

// Validate says what is missing.
func (c *Config) Validate() error {
	var errs []error
	for name, value := range map[string]string{"Node": c.Node, "Server": c.Server, "Logs": c.Logs, "Runtime": c.Runtime} {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s: must be set", name))
		}
	}
	if len(c.Addresses) == 0 {
		errs = append(errs, errors.New("at least one of Addresses is needed"))
	}
	if len(c.PodCIDRs) == 0 {
		errs = append(errs, errors.New("at least one of PodCIDRs is needed"))
	}
	return errors.Join(errs...)
}

func (c *Config) rest() *rest.Config {
	return &rest.Config{
		Host: c.Server,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: c.Authority, CertData: c.Client.Cert, KeyData: c.Client.Key,
		},
		QPS: 100, Burst: 200,
		ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json"},
	}
}

// image finds what stands for a reference such as
// registry.example/team/name:tag@sha256:0123.
func (c *Config) image(reference string) (Image, error) {
	name := reference[strings.LastIndex(reference, "/")+1:]
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(name, ":")
	image, ok := c.Images[name]
	if !ok {
		known := make([]string, 0, len(c.Images))
		for name := range c.Images {
			known = append(known, name)
		}
		return Image{}, fmt.Errorf("no image %q in the lab: there are %s", name, strings.Join(sorted(known), ", "))
	}
	return image, nil
}
