// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc/services"
)

// WebhookPath is where replicas serve the Service webhook, which they also call on each
// other.
const WebhookPath = "/mutate--v1-service"

// ForwardedHeader marks a request of another replica.
const ForwardedHeader = "Causeway-Forwarded"

const maxReview = 8 << 20

// Peers is how the replicas of the controller reach each other's webhooks.
type Peers struct {
	// Address is host:port of this replica's webhooks as the others reach it.
	// Empty: there are no others.
	Address string
	// ServerName is the name in the webhooks' certificate. Empty: that of the
	// Service in front of them.
	ServerName string
	// Certificate is the client certificate for the others; nil for none.
	Certificate func() (*tls.Certificate, error)
	// CA returns the certificates that sign it, as PEM. Nil: from the Secret
	// v1alpha1.WebhookSecret.
	CA func(ctx context.Context) ([]byte, error)
}

// Forwarder sends requests to the replica that may grant: to its webhook, as an
// AdmissionReview, which every version answers: during an upgrade the leader may be of
// another one.
type Forwarder struct{ client *http.Client }

// NewForwarder returns a Forwarder for the replicas in a namespace. reader reads
// the certificate authority.
func NewForwarder(p Peers, namespace string, reader client.Reader) *Forwarder {
	p.ServerName = cmp.Or(p.ServerName, "webhook-service."+namespace+".svc")
	if p.CA == nil {
		p.CA = func(ctx context.Context) ([]byte, error) {
			var secret corev1.Secret
			if err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: v1alpha1.WebhookSecret}, &secret); err != nil {
				return nil, fmt.Errorf("read webhook certificate authority: %w", err)
			}
			return secret.Data["ca.crt"], nil
		}
	}
	return &Forwarder{client: &http.Client{Transport: &http.Transport{
		DialTLSContext:      p.dial,
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     time.Minute,
	}}}
}

// dial trusts the certificate authority at the time of the call, so that a new one needs no
// restart.
func (p Peers) dial(ctx context.Context, network, address string) (net.Conn, error) {
	pem, err := p.CA(ctx)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the webhook certificate authority is empty")
	}
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: time.Second},
		Config:    &tls.Config{RootCAs: roots, ServerName: p.ServerName, MinVersion: tls.VersionTLS13},
	}
	if p.Certificate != nil {
		d.Config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.Certificate() }
	}
	return d.DialContext(ctx, network, address)
}

// Grant asks the replica at address, for at most forwardTimeout: a replica whose node has
// lost power does not answer, while a successor may exist already. Errors are those of
// Allocator.Grant, or others without an answer.
func (f *Forwarder) Grant(ctx context.Context, address string, req Request) (services.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	body, err := json.Marshal(review(req))
	if err != nil {
		return services.Grant{}, fmt.Errorf("write admission review: %w", err)
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+WebhookPath, bytes.NewReader(body))
	if err != nil {
		return services.Grant{}, fmt.Errorf("forward to %s: %w", address, err)
	}
	post.Header.Set("Content-Type", "application/json")
	post.Header.Set(ForwardedHeader, "1")
	answer, err := f.client.Do(post)
	if err != nil {
		return services.Grant{}, fmt.Errorf("forward to %s: %w", address, err)
	}
	defer answer.Body.Close()
	var out admissionv1.AdmissionReview
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxReview)).Decode(&out); err != nil {
		return services.Grant{}, fmt.Errorf("read answer of %s with status %s: %w", address, answer.Status, err)
	}
	if out.Response == nil {
		return services.Grant{}, fmt.Errorf("read answer of %s with status %s: it has no response", address, answer.Status)
	}
	return granted(out.Response)
}

// review writes a request for another replica.
func review(req Request) admissionv1.AdmissionReview {
	out := &admissionv1.AdmissionRequest{
		UID: types.UID(req.UID), Operation: admissionv1.Create, Namespace: req.Service.Namespace, Name: req.Service.Name,
		Object: runtime.RawExtension{Object: req.Service}, DryRun: &req.DryRun,
	}
	if req.Old != nil {
		out.Operation, out.OldObject = admissionv1.Update, runtime.RawExtension{Object: req.Old}
	}
	return admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Request: out,
	}
}

// granted reads the answer of another replica.
func granted(answer *admissionv1.AdmissionResponse) (grant services.Grant, err error) {
	switch {
	case answer.Allowed && len(answer.Warnings) > 0:
		text, _ := strings.CutPrefix(strings.Join(answer.Warnings, "; "), NotAllocated)
		return grant, &UnavailableError{Cause: errors.New(text)}
	case answer.Allowed:
	case answer.Result == nil:
		return grant, errors.New("read answer: it says neither yes nor why not")
	case answer.Result.Code == http.StatusServiceUnavailable:
		return grant, ErrNotLeader
	default:
		denied := &services.Denied{Reason: services.Full, Detail: answer.Result.Message}
		if answer.Result.Code == http.StatusUnprocessableEntity {
			denied.Reason = services.Taken
		}
		return grant, denied
	}
	if len(answer.Patch) == 0 {
		return grant, nil
	}
	var operations []jsonpatch.Operation
	if err := json.Unmarshal(answer.Patch, &operations); err != nil {
		return grant, fmt.Errorf("read grant: %w", err)
	}
	grant, err = FromPatch(operations)
	return grant, err
}
